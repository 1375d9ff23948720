"""Loading with a cast never holds the model twice: measured in a process of its own."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from magihuman_core.checkpoint.assign import assign_weights
from magihuman_core.checkpoint.write import write_checkpoint
from magihuman_core.weights.open import open_checkpoint

from .golden import in_fresh_process, memory_of_process

LAYERS, WIDTH = 12, 2304  # 12 matrices of 21 MB: 255 MB as fp32, 127 MB as bf16, 64 MB as fp8
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("big")
    for name, layers, width in (("big", LAYERS, WIDTH), ("small", 1, 8)):
        tensors = {f"{i}.weight": torch.full((width, width), 0.5) for i in range(layers)}
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


def loaded(path: Path, layers: int, width: int, mapped: bool, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        net = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    assign_weights(net, open_checkpoint(path, mapped=mapped), dtype=dtype)
    assert float(net[-1].weight[-1, -1]) == 0.5
    return net


def written(path: Path, *_) -> nn.Module:
    write_checkpoint(path.with_suffix(".copy"), open_checkpoint(path).entries)
    return nn.Module()


def measure(folder: Path, work, *options) -> tuple[int, int, int]:
    """Bytes: resident memory that work took at its peak, what it keeps of its own, the model."""
    torch.set_num_threads(1)
    work(folder / "small.safetensors", 1, 8, *options)  # what the libraries themselves need is no part of the question
    resident, anonymous = memory_of_process("VmRSS"), memory_of_process("RssAnon")
    net = work(folder / "big.safetensors", LAYERS, WIDTH, *options)
    return (memory_of_process("VmHWM") - resident, memory_of_process("RssAnon") - anonymous,
            sum(p.nbytes for p in net.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_casting_peaks_at_the_loaded_size_and_a_small_buffer(dtype, folder):
    peak, kept, model = in_fresh_process(measure, folder, loaded, False, dtype)
    assert peak <= 1.1 * model + 8e6  # less than one tensor, which are of 21 MB
    assert kept > 0.95 * model  # the measurement sees what is loaded


def test_a_mapped_model_takes_no_memory_of_its_own(folder):
    _, kept, model = in_fresh_process(measure, folder, loaded, True, torch.float32)
    assert kept < 0.05 * model


def test_writing_takes_a_few_pieces_however_large_the_file(folder):
    peak, _, _ = in_fresh_process(measure, folder, written)
    size = (folder / "big.copy").stat().st_size
    assert size > 4 * LAYERS * WIDTH * WIDTH
    assert peak < 0.25 * size
