"""Running a network whose blocks do not all fit into memory: weights come in while they are needed.

Some blocks are resident. The others share two buffers on the compute device: while one block computes from one buffer,
a worker thread fills the other with the block that comes next. It reads from the file, and casts, decodes or rounds on
the way; or copies from main memory, where the blocks were read once.

    file or main memory -> [pinned memory, unless the device is the CPU] -> buffer -> the block's parameters

Only the matrices of the blocks are streamed; norms, embedders and heads are small and always resident. The network
knows nothing of it: a hook of each streamed block fetches its weights before it runs, and the numbers are the same as
when it is resident, bit for bit. Conditional and unconditional pass share each fetch, since MagiHumanDiT.forward_many
goes through the blocks once for both.

The path for CUDA (a stream of its own for copies) follows PyTorch's documentation but its speed has not been measured.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint.assign import check_finite
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.lazy_tensor import InMemory, LazyTensor
from ..errors import InputError
from ..weights.precision import keep_fp32

ALIGNMENT = 256  # bytes; what fast matrix products like their operands to begin at
PIECE = 8 << 20  # bytes read at a time: what is needed beside the buffers stays small
SPARE = 4 << 30  # bytes of main memory left to others where blocks are kept in it

log = logging.getLogger(__name__)


def is_streamed(key: str, blocks: Iterable[int]) -> bool:
    """Whether one of our keys is a matrix of one of these blocks."""
    return key.startswith("blocks.") and not keep_fp32(key) and int(key.split(".", 2)[1]) in blocks


def choose_streamed(blocks: nn.ModuleList, resident: int | None) -> tuple[int, ...]:
    """Which of a network's blocks to stream when `resident` may stay; None: all stay.

    A block's weights cost the same to bring in whether they are many or few per token, but the large
    ones, with an expert for each modality, take three times as long while they compute no longer. So
    these stay first, which also makes the buffers small. Among equals the ones that stay are spread, so
    that there is time between any two fetches. Raises InputError.
    """
    check_resident_blocks(resident)
    if resident is None:
        return ()
    groups: dict[int, list[int]] = {}
    for index, block in enumerate(blocks):
        groups.setdefault(sum(p.numel() for p in block.parameters()), []).append(index)
    stay: set[int] = set()
    for _, group in sorted(groups.items(), reverse=True):
        count = min(len(group), resident - len(stay))
        stay.update(group[i * len(group) // count] for i in range(count))
    return tuple(index for index in range(len(blocks)) if index not in stay)


def check_resident_blocks(resident: int | None) -> None:
    """Raise InputError unless so many blocks can stay."""
    if resident is not None and (isinstance(resident, bool) or not isinstance(resident, int) or resident < 0):
        raise InputError(f"resident_blocks is {resident!r}, expected a whole number of blocks, 0 or more.")


def streamed_sizes(blocks: nn.ModuleList, streamed: Sequence[int]) -> tuple[int, int]:
    """Bytes that come in at each pass, and bytes of the buffers."""
    sizes = [plan_block(index, blocks[index]).nbytes for index in streamed]
    return sum(sizes), min(2, len(sizes)) * max(sizes, default=0)


def stream_blocks(blocks: nn.ModuleList, tensors: Checkpoint, streamed: Sequence[int],
                  device: torch.device | str, stream_from: str | None = None) -> BlockStreamer:
    """Let these blocks fetch their weights before they run; see BlockStreamer and load_dit. Raises InputError."""
    if stream_from not in (None, "file", "memory"):
        raise InputError(f"stream_from is {stream_from!r}, expected file or memory.")
    if stream_from is None and torch.device(device).type != "cpu":
        needed = streamed_sizes(blocks, streamed)[0] + SPARE
        stream_from = "memory" if needed < (free_memory() or 0) else "file"
    streamer = BlockStreamer(blocks, tensors, streamed, device=device, in_memory=stream_from == "memory")
    for index in streamed:
        blocks[index].register_forward_pre_hook(Fetch(streamer, index))
    log.info("%d of %d blocks are resident; %.1f GB of the others come in from %s at each step.",
             len(blocks) - len(streamed), len(blocks), streamer.nbytes / 1e9, stream_from or "file")
    return streamer


def streamer_of(blocks: nn.ModuleList) -> BlockStreamer | None:
    """What brings in the weights of these blocks; None where all are resident."""
    hooks = (hook for block in blocks for hook in block._forward_pre_hooks.values())
    return next((hook.streamer for hook in hooks if isinstance(hook, Fetch)), None)


@dataclass(frozen=True)
class Place:
    """Where a weight goes: in the module and in a buffer."""

    key: str
    owner: nn.Module
    leaf: str
    shape: torch.Size
    dtype: torch.dtype
    begin: int  # byte in the buffer

    def view(self, buffer: Tensor) -> Tensor:
        """Its part of a flat buffer of bytes, in its own shape."""
        end = self.begin + self.shape.numel() * self.dtype.itemsize
        return buffer[self.begin : end].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Plan:
    """A block's weights, one after another in a buffer."""

    places: Sequence[Place]
    nbytes: int


def plan_block(index: int, block: nn.Module) -> Plan:
    """Lay the matrices of a block out in a buffer."""
    places, begin = [], 0
    for name, parameter in block.named_parameters():
        if keep_fp32(name):
            continue
        owner, _, leaf = name.rpartition(".")
        places.append(Place(f"blocks.{index}.{name}", block.get_submodule(owner), leaf, parameter.shape,
                            parameter.dtype, begin))
        begin += -(-parameter.nbytes // ALIGNMENT) * ALIGNMENT
    return Plan(places, begin)


class Slot:
    """A buffer on the compute device, with a pinned one before it where that is not the CPU (staged)."""

    def __init__(self, nbytes: int, device: torch.device, staged: bool | None = None):
        self.buffer = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.host = self.buffer
        if device.type != "cpu" if staged is None else staged:
            self.host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self.index: int | None = None  # the block it holds, or is being filled with
        self.filling: Future | None = None
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.copied = self.used = None  # events: the last copy is done; the last computation is done

    def begin_host(self) -> Tensor:
        """The host's buffer, once the copy that was read from it is over."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.host

    def send(self, nbytes: int) -> None:
        """Bring what is in the host's buffer to the device."""
        if self.host is self.buffer:
            return
        if self.copies is None:
            self.buffer[:nbytes].copy_(self.host[:nbytes])
            return
        with torch.cuda.stream(self.copies):
            if self.used is not None:
                self.copies.wait_event(self.used)
            self.buffer[:nbytes].copy_(self.host[:nbytes], non_blocking=True)
            self.buffer.record_stream(self.copies)
            self.copied = self.copies.record_event()

    def begin_use(self) -> None:
        """Let what is computed from now on wait for the copy."""
        if self.copied is not None:
            torch.cuda.current_stream(self.buffer.device).wait_event(self.copied)

    def end_use(self) -> None:
        """Let the next copy wait for what has been computed until now."""
        if self.copies is not None:
            self.used = torch.cuda.current_stream(self.buffer.device).record_event()


class BlockStreamer:
    """Holds the weights of streamed blocks; `fetch(index)` puts those of a block in place.

    blocks: the network's; tensors: its weights under our keys; streamed: indices of blocks, whose matrices
    are on the meta device, in the dtypes they will have. in_memory: read them all now and keep them in main memory.
    For inference only: a fetch overwrites what a backward pass would need. One forward pass at a time.
    Raises CheckpointError, also while fetching, when a weight cannot be read or is not finite.
    """

    def __init__(self, blocks: nn.ModuleList, tensors: Checkpoint, streamed: Sequence[int], *,
                 device: torch.device | str = "cpu", in_memory: bool = False):
        self.device, self.in_memory = torch.device(device), in_memory
        self.plans = {index: plan_block(index, blocks[index]) for index in streamed}
        self.following = dict(zip(streamed, (*streamed[1:], *streamed[:1]), strict=True))
        self.reader = Reader(tensors)
        if in_memory:
            kept: dict[str, LazyTensor] = {}
            for plan in self.plans.values():
                buffer = torch.empty(plan.nbytes, dtype=torch.uint8)
                self.reader.read(plan, buffer)
                kept |= {place.key: InMemory(place.view(buffer)) for place in plan.places}
            self.reader.tensors = tensors.with_entries(kept)
        largest = max(plan.nbytes for plan in self.plans.values())
        self.slots = [Slot(largest, self.device) for _ in range(min(2, len(self.plans)))]
        self.current: Slot | None = None
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="weights")
        # A read that nobody waits for any more ends with its piece, not with its block.
        self.end = weakref.finalize(self, self.reader.stop.set)

    @property
    def nbytes(self) -> int:
        """What one pass through the network brings in."""
        return sum(plan.nbytes for plan in self.plans.values())

    @property
    def buffer_bytes(self) -> int:
        """What the buffers take on the compute device."""
        return sum(slot.buffer.numel() for slot in self.slots)

    def fetch(self, index: int) -> None:
        """Put the weights of a block in place, and begin to bring in those of the next streamed one."""
        if not self.slots:
            raise InputError("The streaming of weights was closed. Load the network again.")
        slot = next((s for s in self.slots if s.index == index), None) or self._begin(index)
        self._wait(slot)
        if slot is not self.current:
            slot.begin_use()
            self._bind(self.plans[index], slot.buffer)
            self.current = slot
        following = self.following[index]
        if all(s.index != following for s in self.slots):
            self._begin(following)

    def close(self) -> None:
        """Stop reading, and give the buffers back. The network cannot be run any more."""
        self.end()
        self.worker.shutdown(wait=True, cancel_futures=True)
        for slot in self.slots:
            if slot.index is not None:
                self._bind(self.plans[slot.index], None)
        self.slots, self.current = [], None

    def _begin(self, index: int) -> Slot:
        """Start filling the slot that is not computed from."""
        slot = next((s for s in self.slots if s is not self.current), self.slots[0])
        if slot.filling is not None:  # left behind by a pass that was broken off
            slot.filling.exception()
        if slot.index is not None:
            self._bind(self.plans[slot.index], None)
        slot.end_use()
        slot.index = None
        slot.filling = self.worker.submit(fill, slot, self.plans[index], self.reader)
        slot.index = index  # last, so that an interrupt between leaves no slot that seems to be full
        return slot

    def _wait(self, slot: Slot) -> None:
        if slot.filling is None:
            return
        try:
            slot.filling.result()
        except BaseException:
            if slot.filling.done():
                slot.index = None
            raise
        slot.filling = None

    def _bind(self, plan: Plan, buffer: Tensor | None) -> None:
        """Make parameters of the parts of a buffer; without one, of the meta device."""
        for place in plan.places:
            weight = (torch.empty(place.shape, dtype=place.dtype, device="meta") if buffer is None
                      else place.view(buffer))
            place.owner._parameters[place.leaf] = nn.Parameter(weight, requires_grad=False)


@dataclass(frozen=True)
class Fetch:
    """The hook of a streamed block."""

    streamer: BlockStreamer
    index: int

    def __call__(self, block: nn.Module, inputs: tuple) -> None:
        self.streamer.fetch(self.index)


def fill(slot: Slot, plan: Plan, reader: Reader) -> None:
    """What the worker does. It knows nothing of the streamer, so that it does not keep it alive."""
    with torch.inference_mode():  # which each thread has for itself
        reader.read(plan, slot.begin_host())
        slot.send(plan.nbytes)


class Reader:
    """Reads blocks out of a checkpoint, a few rows at a time."""

    def __init__(self, tensors: Checkpoint):
        self.tensors = tensors
        self.checked: set[str] = set()  # known to be finite
        self.stop = threading.Event()

    def read(self, plan: Plan, buffer: Tensor) -> None:
        """Fill the buffer. Raises CheckpointError."""
        for place in plan.places:
            weight = place.view(buffer)
            entry = self.tensors.entries[place.key]
            rows = max(1, PIECE // max(1, weight[:1].nbytes))
            for top in range(0, weight.shape[0], rows):
                if self.stop.is_set():
                    return
                bottom = min(top + rows, weight.shape[0])
                weight[top:bottom] = entry.read(place.dtype, (top, bottom))
            if place.key not in self.checked:
                check_finite(weight, place.key, self.tensors.name)
                self.checked.add(place.key)


def free_memory() -> int | None:
    """Bytes of main memory that are free or can be freed; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
