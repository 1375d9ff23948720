"""How much memory loading and converting a large checkpoint takes, against the usual way.

usage: python benchmarks/loading.py [--gigabytes 2]

Writes a random fp32 network of that size in official layout into a temporary folder, then runs each way in a
process of its own and prints the peak of resident memory over the size of the loaded model, and the time.
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import torch
from process_memory import resident
from safetensors.torch import load_file

from magihuman_core import DiTConfig, MagiHumanDiT, load_dit
from magihuman_core.checkpoint.lazy_tensor import LazyTensor
from magihuman_core.checkpoint.write import write_checkpoint
from magihuman_core.tools.convert import convert
from magihuman_core.weights.dit_keys import official_state_dict, split_official
from magihuman_core.weights.open import open_checkpoint


def config(gigabytes: float) -> DiTConfig:
    """16 layers, 4 of them sandwiches, of the width that gives about this many bytes in fp32."""
    head_dim, layers = 128, 16
    parameters = gigabytes * 1e9 / 4
    heads = max(4, round((parameters / (layers + 8) / (12 * head_dim**2)) ** 0.5 / 4) * 4)
    hidden = heads * head_dim
    return DiTConfig(
        layers=layers, hidden=hidden, head_dim=head_dim, heads=heads, kv_heads=heads // 4, video_channels=48,
        audio_channels=64, text_channels=3584, gelu_width=4 * hidden, swiglu_width=hidden * 8 // 3 // 4 * 4,
        sandwich_layers=(0, 1, 14, 15), gelu_layers=(0, 1),
    )  # fmt: skip


class RandomTensor(LazyTensor):
    def _read(self, begin, end, dtype):
        return torch.randn(end - begin, *self.shape[1:]) * 0.02


def ours_bf16(path: Path) -> torch.nn.Module:
    return load_dit(path, dtype=torch.bfloat16)


def ours_fp8(path: Path) -> torch.nn.Module:
    return load_dit(path, dtype=torch.float8_e4m3fn)


def usual_bf16(path: Path) -> torch.nn.Module:
    """Build, read the whole file, copy it in, cast."""
    tensors = load_file(path)
    sizes = DiTConfig.from_state_dict(tensors)
    dit = MagiHumanDiT(sizes, dtype=torch.float32)
    dit.load_state_dict(dict(split_official(open_checkpoint(tensors, "network"), sizes)))
    return dit.to(torch.bfloat16)


def convert_fp8(path: Path) -> None:
    convert(path, path.with_name("fp8.safetensors"), dtype="fp8", role="base")


WAYS = {"ours, bf16": ours_bf16, "ours, fp8": ours_fp8, "usual, bf16": usual_bf16, "convert to fp8": convert_fp8}


def measure(way: str, path: Path, small: Path, answers) -> None:
    """Runs in its own process; a first small run brings in what the libraries need."""
    torch.set_num_threads(1)
    WAYS[way](small)
    before = resident("VmRSS")
    start = time.perf_counter()
    dit = WAYS[way](path)
    seconds = time.perf_counter() - start
    peak = resident("VmHWM") - before
    loaded = sum(p.nbytes for p in dit.parameters()) if dit is not None else 0
    answers.put((peak, loaded, seconds))


def write_network(path: Path, sizes: DiTConfig) -> None:
    shapes = official_state_dict(MagiHumanDiT(sizes, device="meta"))
    write_checkpoint(path, {key: RandomTensor(tuple(value.shape), torch.float32) for key, value in shapes.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2, help="size of the checkpoint (default %(default)s)")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path, small = Path(folder) / "large.safetensors", Path(folder) / "small.safetensors"
        write_network(path, config(arguments.gigabytes))
        write_network(small, config(0.01))
        print(f"checkpoint: {path.stat().st_size / 1e9:.2f} GB in fp32")
        for way in WAYS:
            answers = context.Queue()
            process = context.Process(target=measure, args=(way, path, small, answers))
            process.start()
            peak, loaded, seconds = answers.get()
            process.join()
            ratio = f"{peak / loaded:5.2f} x the loaded {loaded / 1e9:.2f} GB" if loaded else ""
            print(f"{way:<15} peak {peak / 1e9:5.2f} GB  {ratio:<28} {seconds:6.1f} s")


if __name__ == "__main__":
    main()
