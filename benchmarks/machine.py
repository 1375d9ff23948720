"""What this machine computes with, for reports."""

import platform
from pathlib import Path

import torch

# What decides how fast a processor multiplies in bf16, and the functions of torch.cpu that know of it.
INSTRUCTIONS = {"AMX": "_is_amx_tile_supported", "AVX-512 with bf16": "_is_avx512_bf16_supported"}


def processor() -> str:
    """Its name, and which of these instructions it has: "AMD EPYC (no AMX, AVX-512 with bf16)"."""
    words = [name if getattr(torch.cpu, ask)() else f"no {name}" for name, ask in INSTRUCTIONS.items()
             if hasattr(torch.cpu, ask)]
    return f"{_name()} ({', '.join(words)})" if words and platform.machine() in ("x86_64", "AMD64") else _name()


def _name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, named), platform.processor() or platform.machine())
