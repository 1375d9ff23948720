"""How far a network's outputs move when its weights are kept in fewer bits.

usage: python benchmarks/precision.py [NETWORK] [--positions v1]

NETWORK: a file or folder in any layout (default: the built-in base network, whose own weights are of 8 bits, so that
int8 costs it nothing). Prints the relative error of both velocities against fp32, on one random clip.
"""

import argparse

import torch

from magihuman_core import load_dit
from magihuman_core.loading.folder import find_models

KEPT = {"bf16": torch.bfloat16, "int8": torch.int8, "fp8 e4m3": torch.float8_e4m3fn, "fp8 e5m2": torch.float8_e5m2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", help="default: the built-in base network")
    parser.add_argument("--positions", choices=("v1", "v2"), default="v2", help="v1 for super-resolution")
    args = parser.parse_args()
    source = args.network or find_models("demo")["base"]
    generator = torch.Generator().manual_seed(0)
    exact = load_dit(source, dtype=torch.float32, positions=args.positions)
    c = exact.config
    clip = (torch.randn(1, c.video_channels, 13, 8, 8, generator=generator),
            torch.randn(1, c.audio_channels, 51, generator=generator),
            torch.randn(1, 34, c.text_channels, generator=generator))
    with torch.inference_mode():
        wanted = exact(*clip)
        for name, dtype in KEPT.items():
            compute = torch.bfloat16 if name == "bf16" else torch.float32  # fp32: nothing else is rounded
            kept = load_dit(source, dtype=dtype, compute_dtype=compute, positions=args.positions)
            found = zip(("video", "audio"), kept(*clip), wanted, strict=True)
            errors = ", ".join(f"{stream} {100 * float((a - b).norm() / b.norm()):.1f} %" for stream, a, b in found)
            print(f"{name:<9} {errors}")


if __name__ == "__main__":
    main()
