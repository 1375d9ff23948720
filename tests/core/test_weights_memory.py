"""Loading with a cast never holds the model twice: measured in a process of its own."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS, WIDTH = 12, 2304  # 12 matrices of 21 MB: 255 MB as fp32, 127 MB as bf16, 64 MB as fp8

PROGRAM = """
import sys, torch
from torch import nn
from magihuman_core.checkpoint.assign import assign_weights
from magihuman_core.weights.open import open_checkpoint
from magihuman_core.checkpoint.write import write_checkpoint

def memory(kind):
    for line in open("/proc/self/status"):
        if line.startswith(kind + ":"):
            return int(line.split()[1]) * 1024

def load(path, layers, width):
    with torch.device("meta"):
        net = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    checkpoint = open_checkpoint(path, mapped=sys.argv[2] == "mapped")
    assign_weights(net, checkpoint, dtype=getattr(torch, sys.argv[3]))
    assert float(net[-1].weight[-1, -1]) == 0.5
    return net

def write(path, layers, width):
    write_checkpoint(path + ".copy", open_checkpoint(path).entries)
    return nn.Module()

torch.set_num_threads(1)
work = write if sys.argv[2] == "written" else load
work(sys.argv[4], 1, 8)  # what the libraries themselves need is no part of the question
resident, anonymous = memory("VmRSS"), memory("RssAnon")
net = work(sys.argv[1], int(sys.argv[5]), int(sys.argv[6]))
# Not getrusage's ru_maxrss: across exec that keeps the peak of the process it was started from.
print(memory("VmHWM") - resident, memory("RssAnon") - anonymous, sum(p.nbytes for p in net.parameters()))
"""


def write_model(path: Path, layers: int, width: int) -> None:
    """A stack of square matrices of 0.5, written piece by piece so that this process stays small too."""
    size = 4 * width * width
    entry = {"dtype": "F32", "shape": [width, width]}
    header = {f"{i}.weight": {**entry, "data_offsets": [i * size, (i + 1) * size]} for i in range(layers)}
    text = json.dumps(header).encode()
    text = text.ljust(len(text) + -len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in range(layers):
            file.write(struct.pack("<f", 0.5) * (width * width))


@pytest.fixture(scope="module")
def big_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("big")
    write_model(folder / "model.safetensors", LAYERS, WIDTH)
    write_model(folder / "small.safetensors", 1, 8)
    return folder / "model.safetensors"


def run(path: Path, mode: str, dtype: str) -> tuple[int, int, int]:
    """Bytes: resident memory that loading took at its peak, what it keeps of its own, the model."""
    arguments = [str(path), mode, dtype, str(path.with_name("small.safetensors")), str(LAYERS), str(WIDTH)]
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True)
    return tuple(map(int, done.stdout.split()))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_casting_peaks_at_the_loaded_size_and_a_small_buffer(dtype, big_file):
    peak, kept, loaded = run(big_file, "copied", dtype)
    assert peak <= 1.1 * loaded + 8e6  # less than one tensor, which are of 21 MB
    assert kept > 0.95 * loaded  # the measurement sees what is loaded


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_mapped_model_takes_no_memory_of_its_own(big_file):
    _, kept, loaded = run(big_file, "mapped", "float32")
    assert kept < 0.05 * loaded


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_writing_takes_a_few_pieces_however_large_the_file(big_file):
    peak, _, _ = run(big_file, "written", "float32")
    copy = big_file.with_name(big_file.name + ".copy")
    assert copy.stat().st_size > 4 * LAYERS * WIDTH * WIDTH
    assert peak < 0.25 * big_file.stat().st_size
    copy.unlink()
