"""What devices tell, and memory that a device copies from."""

import gc
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from magihuman_core.errors import is_out_of_memory
from magihuman_core.loading.fits import fit, in_words, settings, target_of
from magihuman_core.loading.folder import ModelFolder
from magihuman_core.loading.wishes import parse_wish
from magihuman_core.pipeline.parts import Parts, choose_device
from magihuman_core.runtime import buffers, devices, main_memory
from magihuman_core.runtime.buffers import PinnedMemory, Slot, host_memory
from magihuman_core.runtime.devices import computes_bf16, free_memory, holds, release_memory


def test_free_memory_of_the_main_memory_and_of_what_has_none():
    assert 1e8 < free_memory("cpu") < psutil.virtual_memory().total
    assert free_memory("meta") is None
    release_memory(torch.device("cpu"))


GB = 10**9
NO_LIMIT = 9223372036854771712  # what version 1 says
V1 = {"memory.usage_in_bytes": 3 * GB, "memory.stat": f"active_file 7\ntotal_active_file {GB}\nrss 5\n"}


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """groups(own, files): control groups as the kernel shows them, on a machine with 64 GB, of which 50 are free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GB, available=50 * GB))
    monkeypatch.setattr(main_memory, "OWN", tmp_path / "own")
    monkeypatch.setattr(main_memory, "MOUNT", tmp_path / "mount")

    def make(own, files):
        if own is not None:
            (tmp_path / "own").write_bytes(own)
        for group, content in files.items():
            folder = tmp_path / "mount" / group
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in content.items():
                (folder / name).write_text(f"{text}\n")

    return make


@pytest.mark.parametrize(("own", "files", "total", "free"), [
    (None, {}, 64, 50),  # Windows, macOS
    (b"0::/\n", {"": {"memory.stat": "anon 5"}}, 64, 50),  # no container: the root has no limit
    (b"0::/\n", {"": {"memory.max": "max", "memory.current": 9 * GB}}, 64, 50),
    (b"0::/\n", {"": {"memory.max": 16 * GB, "memory.current": 4 * GB}}, 16, 12),  # Docker
    # What files take is freed when it is needed.
    (b"0::/\n", {"": {"memory.max": 16 * GB, "memory.current": 16 * GB,
                      "memory.stat": f"anon {2 * GB}\nactive_file {GB}\ninactive_file {13 * GB}"}}, 16, 14),
    (b"0::/\n", {"": {"memory.max": 16 * GB}}, 16, 16),  # what is used is not told
    (b"0::/\n", {"": {"memory.max": 99 * GB, "memory.current": 0}}, 64, 50),  # more than there is
    (b"0::/\n", {"": {"memory.max": 90 * GB, "memory.current": 80 * GB}}, 64, 10),
    (b"0::/\n", {"": {"memory.max": 16 * GB, "memory.current": 17 * GB}}, 16, 0),
    (b"0::/\n", {"": {"memory.max": "max", "memory.high": 8 * GB, "memory.current": GB}}, 8, 7),
    (b"0::/\n", {"": {"memory.max": "many", "memory.current": 1}}, 64, 50),
    # The narrowest of all that it lies in, which need not be the same for both.
    (b"0::/user/job\n", {"user": {"memory.max": 20 * GB, "memory.current": 19 * GB},
                         "user/job": {"memory.max": 8 * GB, "memory.current": GB}}, 8, 1),
    (b"0::/user/job\n", {"user/job": {"memory.max": "max", "memory.current": GB},
                         "user": {"memory.max": 8 * GB, "memory.current": 2 * GB}}, 8, 6),
    (b"0::/docker/1f\n", {"": {"memory.max": 8 * GB, "memory.current": GB}}, 8, 7),  # the host's path is not there
    (b"0::/../../other\n", {"": {"memory.max": 8 * GB, "memory.current": GB}}, 8, 7),
    (b"0::/caf\xe9\n", {"": {"memory.max": 8 * GB, "memory.current": GB}}, 8, 7),  # names are any bytes
    # Version 1, also beside an empty version 2, and with a controller on the same mount.
    (b"4:memory:/\n0::/\n", {"memory": V1 | {"memory.limit_in_bytes": 16 * GB}}, 16, 14),
    (b"4:memory:/\n", {"memory": V1 | {"memory.limit_in_bytes": NO_LIMIT}}, 64, 50),
    (b"5:cpu,memory:/a/b\n3:cpuset:/c\n", {"memory/a/b": V1 | {"memory.limit_in_bytes": NO_LIMIT},
                                          "memory/a": V1 | {"memory.limit_in_bytes": 6 * GB},
                                          "memory/c": V1 | {"memory.limit_in_bytes": GB}}, 6, 4),
    (b"nonsense\n\n1:\n", {"": {"memory.max": GB}}, 64, 50),
])  # fmt: skip
def test_main_memory_is_that_of_the_container(own, files, total, free, groups):
    groups(own, files)
    assert main_memory.main_memory() == (total * GB, free * GB)
    assert free_memory("cpu") == free * GB


def test_a_container_decides_what_is_kept_and_planned(groups):
    """64 GB are there, but of 24 GB that may be used 20 are taken: no part waits, and one is told of the 24 GB."""
    part = torch.nn.Linear(2, 2)
    parts = Parts(ModelFolder(Path(), {}, {}), torch.device("cpu"), keep=True)
    parts.load(lambda source, device: part, "a")
    assert len(parts.kept) == 1
    groups(b"0::/\n", {"": {"memory.max": 24 * GB, "memory.current": 20 * GB}})
    parts.load(lambda source, device: part, "b")
    assert len(parts.kept) == 1
    wish, target = parse_wish("picture"), target_of(16)
    assert "  main memory: 24.0 GB; 32 GB are wanted" in "\n".join(in_words(fit(wish, target)))


def test_free_memory_of_an_accelerator_counts_what_torch_keeps_for_later(monkeypatch):
    """A device with 8 bytes, of which somebody else has 3 and torch 4, of which 1 is in use."""
    module = SimpleNamespace(mem_get_info=lambda device: (1, 8), memory_reserved=lambda device: 4,
                             memory_allocated=lambda device: 1)
    monkeypatch.setattr(devices, "device_module", lambda device: module)
    assert free_memory("cuda:1") == free_memory("xpu") == 4

    def refuse(device):
        raise RuntimeError("the driver does not tell")

    module.mem_get_info = refuse
    assert free_memory("xpu") is None
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 100)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 40)
    assert free_memory("mps") == 60


def test_the_cache_of_any_accelerator_is_emptied(monkeypatch):
    done = []
    module = SimpleNamespace(empty_cache=lambda: done.append("emptied"))
    monkeypatch.setattr(devices, "device_module", lambda device: module)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: done.append(device.type))
    for kind in ("cuda", "mps", "xpu"):
        release_memory(torch.device(kind))
    assert done == ["cuda", "emptied", "mps", "emptied", "xpu", "emptied"]


@pytest.mark.parametrize(("hip", "capability", "name", "expected"), [
    (None, (7, 5), "", False), (None, (8, 0), "", True), (None, (12, 0), "", True),
    ("6.4", (10, 3), "gfx1030", False), ("6.4", (11, 0), "gfx1100", True), ("6.4", (9, 0), "gfx90a:sramecc+", True),
])  # fmt: skip
def test_cards_without_bf16(hip, capability, name, expected, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(gcnArchName=name))
    assert computes_bf16("cuda:0") is expected
    assert computes_bf16("cpu") and computes_bf16("mps")


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), MemoryError(),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), RuntimeError("CUDA error: out of memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
])  # fmt: skip
def test_every_way_of_having_no_memory_left(error):
    assert is_out_of_memory(error)


def test_what_is_no_lack_of_memory():
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 62, dtype=torch.uint8)  # what the CPU itself says
    assert is_out_of_memory(found.value)
    for error in (RuntimeError("shapes do not match"), ValueError("out of memory"), OSError(28, "No space left")):
        assert not is_out_of_memory(error)


@pytest.mark.parametrize(("cuda", "other", "chosen"), [(True, "mps", "cuda"), (False, "mps", "mps"),
                                                       (False, "xpu", "xpu"), (False, None, "cpu")])
def test_the_device_where_none_is_named(cuda, other, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: other is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(other))
    assert choose_device("auto").type == chosen


def test_a_clip_is_planned_for_devices_other_than_nvidias_which_are_said_not_to_be_tried(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 48_000_000_000)
    wish, target = parse_wish("picture 540p"), target_of(None)
    assert "Mac" in target.name and 46e9 < target.free < 48e9
    said = "\n".join([*in_words(fit(wish, target)), *settings(wish, target)])
    assert "was not tried" in said and "It will run." in said
    assert "weight_dtype int8, as this device holds no fp8" in said  # there is no MPS here, so that it holds nothing
    planned = target_of(16)
    assert "was not tried" not in "\n".join([*in_words(fit(wish, planned)), *settings(wish, planned)])
    assert holds("cpu", torch.float8_e4m3fn) and not holds("mps", torch.float8_e4m3fn)


class Runtime:
    """What is asked of the CUDA runtime, which says yes or no."""

    def __init__(self, answer):
        self.answer, self.pinned, self.asked, self.current = answer, {}, [], None

    def put_in_place(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "cudart", lambda: self)
        monkeypatch.setattr(torch.cuda, "device", self.device)

    @contextmanager
    def device(self, device):
        """Which is current meanwhile; before and after it is another one."""
        self.current = device
        yield
        self.current = None

    def cudaHostRegister(self, address, size, flags):  # noqa: N802 - the runtime's own names
        assert self.current is not None and self.current.type == "cuda"
        self.asked.append((address, size, flags))
        if self.answer == 0:
            self.pinned[address] = size
        return self.answer

    def cudaHostUnregister(self, address):  # noqa: N802
        assert self.current is not None
        del self.pinned[address]
        return 0


@pytest.mark.parametrize("answer", [0, 2])
def test_pinned_memory_is_as_large_as_asked_for_and_is_given_back(answer, monkeypatch):
    runtime, device = Runtime(answer), torch.device("cuda:1")
    runtime.put_in_place(monkeypatch)
    waited, discarded = [], []
    monkeypatch.setattr(buffers, "discard_error", discarded.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(list(runtime.pinned)))
    size = (5 << 20) + 4096
    buffer = host_memory(size, device)
    assert buffer.nbytes == size and runtime.asked == [(buffer.data_ptr(), size, 1)]
    buffer.fill_(7)
    view = buffer[4096:].view(torch.bfloat16)
    del buffer
    gc.collect()
    assert len(runtime.pinned) == (answer == 0)  # a view is in use
    assert view.numel() and waited == [] and discarded == ([] if answer == 0 else [device])
    address = list(runtime.pinned)
    del view
    gc.collect()
    assert runtime.pinned == {}
    if answer == 0:
        assert waited == [address]  # pinned still, while a copy may be under way


def test_memory_that_outlives_cuda_ends_without_a_word(monkeypatch, recwarn):
    """At the end of Python modules are emptied while buffers are still there."""
    runtime = Runtime(0)
    runtime.put_in_place(monkeypatch)
    buffer = host_memory(4096, torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", None)
    unraised = []
    monkeypatch.setattr(sys, "unraisablehook", unraised.append)
    assert len(runtime.pinned) == 1
    del buffer
    gc.collect()
    assert unraised == []


def test_main_memory_for_other_devices_is_torchs_own():
    assert host_memory(5, torch.device("cpu")).nbytes == 5
    assert not isinstance(Slot(8, torch.device("cpu"), staged=True).host, PinnedMemory)
