"""Streamed blocks: the same bits as resident ones, in little memory, whatever goes wrong meanwhile."""

import sys
import threading
import weakref
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from magihuman_core import CheckpointError, DiTConfig, InputError, MagiHumanDiT, load_dit
from magihuman_core.checkpoint.lazy_tensor import LazyTensor
from magihuman_core.runtime.buffers import Slot
from magihuman_core.runtime.streaming import choose_streamed, streamed_sizes, streamer_of
from magihuman_core.weights.dit_keys import official_state_dict
from magihuman_core.weights.open import open_checkpoint

from .golden import in_fresh_process, memory_of_process, random_clip, real_model, recorded_network


@pytest.fixture(scope="module")
def weights():
    return recorded_network()


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "network.safetensors"
    save_file(weights, path)
    return path


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def resident(file):
    return load_dit(file)


@pytest.mark.parametrize("stream_from", ["file", "memory", None])
@pytest.mark.parametrize("blocks", range(8))
def test_bits_are_those_of_the_resident_network(blocks, stream_from, file, resident):
    dit = load_dit(file, resident_blocks=blocks, stream_from=stream_from)
    streamed = {int(key.split(".")[1]) for key, value in dit.state_dict().items() if value.is_meta}
    assert len(streamed) == max(0, 6 - blocks)
    for seed in (1, 2):  # the second pass begins with what the first one left in the buffers
        clip = random_clip(dit.config, seed=seed)
        with torch.inference_mode():
            assert same(dit(*clip), resident(*clip))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_any_gradient_mode_and_fp32_and_tensors_in_memory(mode, weights):
    with torch.inference_mode():  # as the pipeline loads it
        dit = load_dit(weights, dtype=torch.float32, resident_blocks=1)
    clip = random_clip(dit.config)
    with mode():
        out = [dit(*clip), dit(*clip)]
    for each in out:
        assert same(each, load_dit(weights, dtype=torch.float32)(*clip))


class Counted(LazyTensor):
    """A tensor whose reads are counted."""

    def __init__(self, source, counts, key):
        super().__init__(source.shape, source.dtype)
        self.source, self.counts, self.key = source, counts, key

    def _read(self, begin, end, dtype):
        self.counts[self.key] = self.counts.get(self.key, 0) + 1
        return self.source.read(dtype, (begin, end))


def test_two_passes_share_each_fetch(file, resident):
    counts = {}
    checkpoint = open_checkpoint(file, "network")
    entries = {key: Counted(entry, counts, key) for key, entry in checkpoint.entries.items()}
    dit = load_dit(checkpoint.with_entries(entries), resident_blocks=3)
    config = dit.config
    inputs = [random_clip(config), random_clip(config, text=4, seed=5)]
    counts.clear()
    with torch.inference_mode():
        outs = dit.forward_many(inputs)
        assert all(same(out, resident(*clip)) for out, clip in zip(outs, inputs, strict=True))
    streamer_of(dit.blocks).close()  # after the read ahead for the next step
    up = {key: count for key, count in counts.items() if "up_gate_proj" in key}
    assert len(up) == 3 and min(up.values()) >= 1
    # Each expert once; the block that the next step begins with may have been begun.
    assert sum(up.values()) <= sum(3 if int(key.split(".")[2]) in config.sandwich_layers else 1 for key in up) + 3


def test_a_caller_of_its_own_sees_every_block(file, resident):
    dit, seen = load_dit(file, resident_blocks=0), []

    def run_block(index, block, x, layout, attention):
        seen.append(index)
        return block(x, layout, attention)

    clip = random_clip(dit.config)
    with torch.inference_mode():
        assert same(dit(*clip, run_block=run_block), resident(*clip))
    assert seen == list(range(6))


@pytest.mark.parametrize("broken_at", range(6))
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_pass_broken_off_harms_nothing_and_leaves_nothing(error, broken_at, file, resident):
    dit = load_dit(file, resident_blocks=1)
    clip = random_clip(dit.config)

    def run_block(index, block, x, layout, attention):
        if index == broken_at:
            raise error("stop")
        return block(x, layout, attention)

    with torch.inference_mode():
        for _ in range(2):
            with pytest.raises(error, match="stop"):
                dit(*clip, run_block=run_block)
        assert same(dit(*clip), resident(*clip))
    buffers = [weakref.ref(slot.buffer) for slot in streamer_of(dit.blocks).slots]
    workers = [t for t in threading.enumerate() if t.name.startswith("weights")]
    assert workers and len(buffers) == 2
    del dit, run_block
    for worker in workers:
        worker.join(10)
    assert not any(worker.is_alive() for worker in workers)
    assert all(buffer() is None for buffer in buffers)


def test_close_gives_the_buffers_back(file):
    dit = load_dit(file, resident_blocks=0)
    clip = random_clip(dit.config)
    with torch.inference_mode():
        dit(*clip)
        buffer = weakref.ref(streamer_of(dit.blocks).slots[0].buffer)
        streamer_of(dit.blocks).close()
        assert buffer() is None
        with pytest.raises(InputError, match="closed"):
            dit(*clip)
    streamer_of(dit.blocks).close()  # twice does no harm


def test_a_file_that_goes_away_is_said_and_may_come_back(file, resident, tmp_path):
    path = tmp_path / "network.safetensors"
    path.write_bytes(file.read_bytes())
    dit = load_dit(path, resident_blocks=1)
    clip = random_clip(dit.config)
    path.rename(tmp_path / "elsewhere")
    with torch.inference_mode():
        for _ in range(2):
            with pytest.raises(CheckpointError, match=r"network\.safetensors: cannot be read"):
                dit(*clip)
        (tmp_path / "elsewhere").rename(path)
        assert same(dit(*clip), resident(*clip))
        path.write_bytes(b"")
        with pytest.raises(CheckpointError, match="became shorter"):
            dit(*clip)


def test_damaged_values_are_found_when_they_come_in(weights, file):
    bad = weights["block.layers.3.mlp.down_proj.weight"].clone()
    bad[-1, -1] = torch.inf
    dit = load_dit(weights | {"block.layers.3.mlp.down_proj.weight": bad}, resident_blocks=4)
    with pytest.raises(CheckpointError, match=r"blocks\.3\.experts\.shared\.mlp\.down_proj.*infinite"):
        dit(*random_clip(dit.config))
    with pytest.raises(CheckpointError, match="infinite"):  # in memory: at once
        load_dit(weights | {"block.layers.3.mlp.down_proj.weight": bad}, resident_blocks=4, stream_from="memory")


def test_missing_and_misshapen_weights_are_found_at_loading(weights):
    name = "block.layers.3.mlp.down_proj.weight"
    for change, message in (({name: weights[name][:-1]}, "shape"), ({"surplus": weights[name]}, "surplus")):
        with pytest.raises(CheckpointError, match=message):
            load_dit(weights | change, resident_blocks=0)


def test_arguments(file):
    for value in (-1, True, 1.5, "2"):
        with pytest.raises(InputError, match="resident_blocks"):
            load_dit(file, resident_blocks=value)
    with pytest.raises(InputError, match="stream_from"):
        load_dit(file, resident_blocks=1, stream_from="tape")


def test_staging_buffers_carry_the_same_bits(file, resident):
    """What a device that is no CPU does, with the CPU in its place."""
    dit = load_dit(file, resident_blocks=0)
    largest = streamer_of(dit.blocks).slots[0].buffer.numel()
    streamer_of(dit.blocks).slots = [Slot(largest, torch.device("cpu"), staged=True) for _ in range(2)]
    clip = random_clip(dit.config)
    with torch.inference_mode():
        for _ in range(2):
            assert same(dit(*clip), resident(*clip))
    assert all(slot.host.data_ptr() != slot.buffer.data_ptr() for slot in streamer_of(dit.blocks).slots)


def test_large_blocks_stay_first_and_the_others_spread():
    config = DiTConfig.from_state_dict(real_model("network"))
    blocks = MagiHumanDiT(config, dtype=torch.bfloat16, device="meta").blocks
    assert all(choose_streamed(blocks, count) == () for count in (None, 40, 99))
    assert choose_streamed(blocks, 0) == tuple(range(40))
    assert set(choose_streamed(blocks, 8)) == set(range(40)) - set(config.sandwich_layers)
    half = choose_streamed(blocks, 24)
    assert len(half) == 16 and all(b - a == 2 for a, b in pairwise(half))
    for count in range(41):
        assert len(choose_streamed(blocks, count)) == 40 - count
    through, buffers = streamed_sizes(blocks, choose_streamed(blocks, 8))
    assert 17e9 < through < 18e9 and 1.0e9 < buffers < 1.1e9


# Memory, in a process of its own


def zeros(layers, hidden, heads):
    """A network of zeros under official names."""
    config = DiTConfig(layers=layers, hidden=hidden, head_dim=hidden // heads, heads=heads, kv_heads=heads,
                       video_channels=48, audio_channels=64, text_channels=64, gelu_width=4 * hidden,
                       swiglu_width=hidden * 8 // 3 // 4 * 4, sandwich_layers=(0, layers - 1), gelu_layers=())
    dit = MagiHumanDiT(config, dtype=torch.float32, device="meta")
    return {key: torch.zeros(value.shape) for key, value in official_state_dict(dit).items()}


@pytest.fixture(scope="module")
def big_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("big")
    save_file(zeros(3, 64, 4), folder / "small.safetensors")
    save_file(zeros(6, 768, 8), folder / "big.safetensors")
    return folder


def measure(folder, blocks):
    """Bytes: memory taken at its peak, weights at the end, buffers, weights that are streamed."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        small = load_dit(folder / "small.safetensors", resident_blocks=0)
        small(*random_clip(small.config, T=1, H=2, W=2, audio=1, text=2))
        del small
        before = memory_of_process("VmRSS")
        dit = load_dit(folder / "big.safetensors", resident_blocks=blocks)
        for _ in range(2):
            dit(*random_clip(dit.config, T=1, H=2, W=2, audio=1, text=2))
    streamer = streamer_of(dit.blocks)
    return (memory_of_process("VmHWM") - before, sum(p.nbytes for p in dit.parameters() if not p.is_meta),
            streamer.buffer_bytes if streamer else 0, streamer.nbytes if streamer else 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("blocks", [0, 2, None])
def test_memory_is_what_is_resident_and_two_buffers(blocks, big_files):
    peak, weights, buffers, streamed = in_fresh_process(measure, big_files, blocks)
    # weights holds the block that is in a buffer at the end, too; a few MB are pieces on their way.
    outside = weights if blocks is None else weights - buffers // 2
    assert 0.95 * (outside + buffers) < peak < outside + buffers + 45e6
    if blocks is not None:
        assert streamed > buffers and buffers < 150e6
