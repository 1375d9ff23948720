"""How much memory loading and converting a large checkpoint takes, against the usual way.

usage: python -m benchmarks.loading [--quick]

Writes a random fp32 network of 2.4 GB (quick: 0.27) in official layout into a temporary folder, then runs each way in
a process of its own: the peak of resident memory over the size of the loaded model, and the time.
"""

import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file

from magihuman_core import DiTConfig, MagiHumanDiT, load_dit
from magihuman_core.checkpoint.lazy_tensor import LazyTensor
from magihuman_core.checkpoint.write import write_checkpoint
from magihuman_core.tools.convert import convert
from magihuman_core.weights.dit_keys import official_state_dict, split_official
from magihuman_core.weights.open import open_checkpoint

from .measure import Row, command_line, main, peak_resident, seconds

HEADS, QUICK_HEADS, WARM_UP_HEADS = 12, 4, 1  # 2.4, 0.27 and 0.02 GB


def config(heads: int) -> DiTConfig:
    """16 layers, 4 of them sandwiches, of this many heads."""
    hidden = heads * 128
    return DiTConfig(
        layers=16, hidden=hidden, head_dim=128, heads=heads, kv_heads=max(1, heads // 4), video_channels=48,
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


def measure(way: str, path: Path, small: Path) -> tuple[int | None, int, float]:
    """(bytes at the peak, bytes of what was loaded, seconds). Runs in its own process; a first small run brings in what
    the libraries need."""
    torch.set_num_threads(1)
    WAYS[way](small)
    loaded: list[torch.nn.Module | None] = []
    taken: list[float] = []
    peak = peak_resident(lambda: taken.append(seconds(lambda: loaded.append(WAYS[way](path)))))
    return peak, sum(p.nbytes for dit in loaded if dit is not None for p in dit.parameters()), taken[0]


def write_network(path: Path, sizes: DiTConfig) -> None:
    shapes = official_state_dict(MagiHumanDiT(sizes, device="meta"))
    write_checkpoint(path, {key: RandomTensor(tuple(value.shape), torch.float32) for key, value in shapes.items()})


def rows(quick: bool = False) -> Iterator[Row]:
    """Peak over loaded size, or alone where nothing stays loaded, of each way."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path, small = Path(folder) / "large.safetensors", Path(folder) / "small.safetensors"
        write_network(path, config(QUICK_HEADS if quick else HEADS))
        write_network(small, config(WARM_UP_HEADS))
        for way in WAYS:
            with ProcessPoolExecutor(1, spawn) as process:  # an error in it, or its end by the system, is raised here
                peak, loaded, taken = process.submit(measure, way, path, small).result()
            note = f"{taken:.1f} s, file {path.stat().st_size / 1e9:.2f} GB in fp32"
            what, unit = (f"{way}: peak / loaded", "") if loaded else (f"{way}: peak", "GB")
            if peak is None:
                yield Row(what, None, unit, f"this system does not tell the peak; {note}")
            else:
                yield Row(what, peak / (loaded or 1e9), unit, f"peak {peak / 1e9:.2f} GB, {note}")


if __name__ == "__main__":
    raise SystemExit(main(rows, command_line(__doc__)))
