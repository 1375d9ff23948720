"""What all benchmarks share: rows of figures, times, memory, random weights, tables."""

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from magihuman_core.model.rope import RotaryBands, rope_bands


@dataclass(frozen=True)
class Row:
    """One figure."""

    what: str
    value: float | None  # None: not measured, for the reason in the note
    unit: str = ""
    note: str = ""
    limit: float | None = None  # the value must not be above it

    @property
    def failed(self) -> bool:
        return self.limit is not None and self.value is not None and not self.value <= self.limit

    @property
    def text(self) -> str:
        if self.value is None:
            return "-"
        return f"{self.value:.3g} {self.unit}".strip()


def interleaved(*functions: Callable[[], object], repeats: int, device: str | torch.device = "cpu") -> list[float]:
    """The best seconds of each of several functions, run in turns, so that a busy machine slows all alike."""
    times = [[seconds(function, device) for function in functions] for _ in range(repeats)]
    return [min(column) for column in zip(*times, strict=True)]


def seconds(function: Callable[[], object], device: str | torch.device = "cpu") -> float:
    """How long a function takes, until the device has done all of it."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def release(device: str | torch.device) -> None:
    """Give back what nobody refers to any more."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def peak(function: Callable[[], object], device: str | torch.device) -> int | None:
    """Bytes that a function takes on a card at its most; None on a CPU."""
    if torch.device(device).type != "cuda":
        function()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def resident(field: str, process: int | str = "self") -> int:
    """Bytes of a line of a process's status in /proc: "VmRSS" now, "VmHWM" at the peak.

    Not getrusage's ru_maxrss, which across exec keeps the peak of the process that started this one.
    """
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


@torch.no_grad()
def fill_randomly(module: nn.Module, device: str | torch.device, seed: int = 0) -> nn.Module:
    """Give a module of the meta device small random weights, made on the device itself."""
    generator = torch.Generator(device).manual_seed(seed)
    module.to_empty(device=device)
    for owner in module.modules():
        for parameter in owner.parameters(recurse=False):
            if parameter.dtype == torch.int8:
                parameter.copy_(torch.randint(-100, 100, parameter.shape, device=device, dtype=torch.int8,
                                              generator=generator))
            elif parameter.dim() == 1:
                parameter.fill_(1e-3)
            elif parameter.dtype.itemsize > 1:
                parameter.normal_(std=0.02, generator=generator)
            else:  # fp8 knows no random numbers
                for rows in parameter.split(4096):
                    rows.copy_(torch.randn(rows.shape, device=device, generator=generator))
        if isinstance(owner, RotaryBands):
            owner.bands.copy_(rope_bands(len(owner.bands)))
    return module


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [f"| {row.what} | {row.text}{' **FAILED**' if row.failed else ''} | {row.note} |" for row in rows]
    return "\n".join(["| what | figure | |", "|---|---:|---|", *lines])


def main(rows: Callable[..., list[Row]], doc: str | None) -> None:
    """The command line of a module."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats")
    arguments = parser.parse_args()
    with suppress(KeyboardInterrupt):
        print(table(rows(arguments.quick)))
