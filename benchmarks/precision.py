"""How far a network's outputs move when its weights are kept in fewer bits.

usage: python -m benchmarks.precision [NETWORK] [--quick] [--positions v1]

NETWORK: a file or folder in any layout (default: the built-in base network, whose own weights are of 8 bits, so that
int8 costs it nothing). The relative error of both velocities against fp32, on one random clip.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from magihuman_core import load_dit
from magihuman_core.loading.folder import find_models

from .measure import Row, command_line, main

KEPT = {"bf16": torch.bfloat16, "int8": torch.int8, "fp8 e4m3": torch.float8_e4m3fn, "fp8 e5m2": torch.float8_e5m2}


@torch.inference_mode()
def rows(quick: bool = False, network: str | Path | None = None, positions: str = "v2") -> Iterator[Row]:
    """Relative errors in percent, of video and audio. quick: makes no difference."""
    source = network or find_models("demo")["base"]
    generator = torch.Generator().manual_seed(0)
    exact = load_dit(source, dtype=torch.float32, positions=positions)
    c = exact.config
    clip = (torch.randn(1, c.video_channels, 13, 8, 8, generator=generator),
            torch.randn(1, c.audio_channels, 51, generator=generator),
            torch.randn(1, 34, c.text_channels, generator=generator))
    wanted = exact(*clip)
    for name, dtype in KEPT.items():
        compute = torch.bfloat16 if name == "bf16" else torch.float32  # fp32: nothing else is rounded
        kept = load_dit(source, dtype=dtype, compute_dtype=compute, positions=positions)
        for stream, a, b in zip(("video", "audio"), kept(*clip), wanted, strict=True):
            yield Row(f"error of {stream}, weights in {name}", 100 * float((a - b).norm() / b.norm()), "%")


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("network", nargs="?", help="default: the built-in base network")
    parser.add_argument("--positions", choices=("v1", "v2"), default="v2", help="v1 for super-resolution")
    raise SystemExit(main(rows, parser))
