"""What all benchmarks share: rows of figures, times, memory, random weights, tables, a command line."""

import argparse
import ctypes
import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from magihuman_core import InputError
from magihuman_core.errors import CheckpointError, is_out_of_memory
from magihuman_core.model.rope import RotaryBands, rope_bands
from magihuman_core.runtime.devices import device_module, release_memory


@dataclass(frozen=True)
class Row:
    """One figure."""

    what: str
    value: float | None  # None: not measured, for the reason in the note
    unit: str = ""
    note: str = ""
    limit: float | None = None  # the value must not be above it
    error: bool = False  # it ended by an error, which the note names

    @property
    def failed(self) -> bool:
        return self.error or (self.limit is not None and self.value is not None and not self.value <= self.limit)

    @property
    def text(self) -> str:
        if self.value is None:
            return "-"
        return f"{self.value:.3g} {self.unit}".strip()


def attempt(what: str, rows: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """The rows of a measurement as they come. One error ends it with a row that failed, so that others can go on; of
    memory that does not suffice the row says so, and nothing failed."""
    try:
        yield from rows()
        return
    except Exception as error:  # whatever it is on somebody's machine, the report is to tell
        ended = Row(what, None, note=reason(error), error=not is_out_of_memory(error))
    yield ended  # here, where the error's frames and their tensors are gone


def reason(error: Exception) -> str:
    """An error in one short line."""
    said = next(filter(None, map(str.strip, str(error).splitlines())), "without a message")
    return f"{type(error).__name__}: {said}"[:160]


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
    """Wait until a device has done all that it was given."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def release(device: str | torch.device) -> None:
    """Give back what nobody refers to any more."""
    gc.collect()
    release_memory(torch.device(device))


def peak(function: Callable[[], object], device: str | torch.device) -> int | None:
    """Bytes that a function takes on a card at its most; None on a CPU, and where torch does not count them (MPS)."""
    module = device_module(torch.device(device))
    if module is None or not hasattr(module, "max_memory_allocated"):
        function()
        return None
    module.reset_peak_memory_stats(device)
    before = module.memory_allocated(device)
    function()
    synchronize(device)
    return module.max_memory_allocated(device) - before


def peak_resident(function: Callable[[], object]) -> int | None:
    """Bytes of main memory that a function adds to this process at its most; None where the system does not tell."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # where the C library is another one than Linux's usual one
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is kept for later; it would hide as much of the peak
    with suppress(OSError):  # some containers forbid it; the peak is then the one since this process began
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident("VmRSS")
    function()
    most = resident("VmHWM")
    return None if before is None or most is None else most - before


def resident(field: str, process: int | str = "self") -> int | None:
    """Bytes of a line of a process's status in /proc: "VmRSS" now, "VmHWM" at the peak; None where there is none.

    Not getrusage's ru_maxrss, which across exec keeps the peak of the process that started this one.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux, or the process has ended
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)


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
    cells = [(row.what, f"{row.text}{' **FAILED**' if row.failed else ''}", row.note) for row in rows]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in cells]
    return "\n".join(["| what | figure | |", "|---|---:|---|", *lines])


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """With the option that all modules have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats")
    return parser


def main(rows: Callable[..., Iterable[Row]], parser: argparse.ArgumentParser) -> int:
    """The command line of a module, whose options rows() takes by name. Prints what was measured, however it ends.

    Returns 1 where a row failed or an error ended it, 130 after Ctrl-C.
    """
    found: list[Row] = []
    try:
        for row in rows(**vars(parser.parse_args())):
            found.append(row)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except (InputError, CheckpointError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if found:
            print(table(found))
    return int(any(row.failed for row in found))
