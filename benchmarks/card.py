"""What this machine's graphics card does with MagiHuman: is it right, how fast, how much memory.

usage: python -m benchmarks.card [--quick] [--device cuda] [--out FOLDER]

Needs no download: weights of the released shapes are random, and made on the device. Takes at most 12 minutes (--quick:
about three). Writes card.md, to be pasted into an issue, and card.json with the same figures. Without a GPU small
models run on the CPU, which shows that everything works and says nothing about speed. The report is written anew after
each figure, and is there however it ends. Ends with 1 where a check failed or a measurement ended by an error.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from magihuman_core import InputError
from magihuman_core.atomic import check_place, whole_file
from magihuman_core.pipeline.parts import choose_device
from magihuman_core.runtime.cards import this_card
from magihuman_core.runtime.devices import computes_bf16, device_name, free_memory, total_memory

from . import paths, speed
from .machine import processor
from .measure import Row, attempt, reason, table

NO_GPU = "No GPU was found: small models on the CPU, whose times say nothing about the real ones."
MINUTES, QUICK_MINUTES = 9, 3  # for the measurements of speed; checks take less than two more


def environment(device: torch.device) -> dict[str, str]:
    """What the figures depend on."""
    found = {"processor": processor(), "torch": torch.__version__, "python": platform.python_version(),
             "system": platform.platform()}
    if device.type == "cpu":
        return {"device": "CPU"} | found
    asked = {"device": lambda: device_name(device), "kind": lambda: device.type, "memory": lambda: _memory(device),
             "bf16": lambda: "computed by itself" if computes_bf16(device) else "emulated"}
    if device.type == "cuda":
        asked |= {"capability": lambda: ".".join(map(str, torch.cuda.get_device_capability(device))),
                  "CUDA or ROCm": lambda: str(torch.version.cuda or torch.version.hip)}
    asked["known card"] = lambda: _known(device)
    return {name: _answer(ask) for name, ask in asked.items()} | found


def _answer(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except Exception as error:  # whatever a driver does not tell, the report is about the rest
        return f"not known ({reason(error)})"


def _memory(device: torch.device) -> str:
    total, free = (None if size is None else f"{size / 2**30:.1f} GiB" for size in (
        total_memory(device), free_memory(device)))
    return f"{total or 'not known'}, {free or 'not known how much'} free"


def _known(device: torch.device) -> str:
    card = this_card(device)
    return card.name if card else "no: shares of its peak and times are not estimated"


@dataclass
class Report:
    """What was found so far."""

    folder: Path
    facts: dict[str, str]
    small: bool  # whether small models are run
    checks: list[Row] = field(default_factory=list)
    figures: list[Row] = field(default_factory=list)
    finished: bool = False
    start: float = field(default_factory=time.perf_counter)

    @property
    def failed(self) -> bool:
        return any(row.failed for row in (*self.checks, *self.figures))

    @property
    def verdict(self) -> str:
        failed, broken = (sum(row.failed for row in rows) for rows in (self.checks, self.figures))
        passed = sum(row.value is not None and not row.failed for row in self.checks)
        parts = ["" if self.finished else "**Not finished: this is what was measured until it ended.**",
                 f"**{failed} of {len(self.checks)} checks failed.**" if failed else
                 f"All checks passed ({passed}, of {len(self.checks)})." if self.finished and passed else
                 f"{passed} checks passed.",
                 f"**{broken} measurements ended by an error.**" if broken else ""]
        return " ".join(filter(None, parts))

    def text(self) -> str:
        """Markdown."""
        parts = [f"## MagiHuman on {self.facts['device']}", NO_GPU if self.small else "",
                 "\n".join(f"- {name}: {value}" for name, value in self.facts.items()), self.verdict,
                 "### Correctness: relative errors", table(self.checks),
                 "### Speed, small models" if self.small else "### Speed and memory, 5 seconds of video",
                 table(self.figures), f"Took {time.perf_counter() - self.start:.0f} s."]
        return "\n\n".join(filter(None, parts)) + "\n"

    def write(self) -> None:
        content = {"environment": self.facts, "finished": self.finished, "checks": list(map(asdict, self.checks)),
                   "figures": list(map(asdict, self.figures))}
        for name, text in (("card.md", self.text()), ("card.json", json.dumps(content, indent=1))):
            with whole_file(self.folder / name) as file:
                file.write(text.encode())


def measure(report: Report, device: torch.device, quick: bool) -> None:
    """Fill and write a report, row by row."""
    minutes = QUICK_MINUTES if quick else MINUTES
    for found, rows in ((report.checks, attempt("correctness", lambda: paths.rows(quick, device))),
                        (report.figures, attempt("speed", lambda: speed.rows(quick, device, minutes)))):
        for row in rows:
            found.append(row)
            print(f"{row.what}: {'FAILED' if row.failed else row.text}", file=sys.stderr, flush=True)
            with suppress(OSError, InputError):  # a full disk ends no measurement; the last time it is told
                report.write()
    report.finished = True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one block of each kind, and fewer repeats")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where the report goes")
    arguments = parser.parse_args(argv)
    try:
        device = choose_device(arguments.device)
        for name in ("card.md", "card.json"):
            check_place(arguments.out / name, "report")
    except InputError as error:
        parser.error(str(error))
    small = device.type == "cpu"
    if small:
        print(NO_GPU)
    report = Report(arguments.out, environment(device), small)
    interrupted = False
    try:
        measure(report, device, arguments.quick)
    except KeyboardInterrupt:
        interrupted = True
    print(report.text())
    try:
        report.write()
    except (OSError, InputError) as error:
        print(f"The report above could not be written: {error}", file=sys.stderr)
        return 1
    print(f"Written to {arguments.out / 'card.md'} and card.json; please paste card.md into an issue.")
    return 130 if interrupted else int(report.failed)


if __name__ == "__main__":
    raise SystemExit(main())
