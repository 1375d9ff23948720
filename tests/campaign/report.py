"""The campaign's counts as a table, written by the program into docs/reliability.md."""

import datetime
import platform
from pathlib import Path

import torch

from .campaign import ENDS, KINDS, Count

BEGIN, END = "<!-- written by python -m tests.campaign: begin -->", "<!-- end -->"


COLUMNS = ("kind", "what", "cases", *ENDS, "struck", "most until refused", "run")


def rows(counts: dict[str, Count], seed: int) -> dict[str, list[str]]:
    """A row of the table for each kind, without its name."""
    found = {}
    for kind, count in counts.items():
        what = (KINDS[kind].__doc__ or "").split("\n")[0].rstrip(".")
        found[kind] = [what, str(count.cases), *(str(count.ends[end]) for end in ENDS), str(count.struck or ""),
                       f"{count.seconds:.1f} s, {count.memory >> 20} MiB", f"seed {seed}, {count.spent:.0f} s"]
    return found


def table(found: dict[str, list[str]]) -> str:
    """In Markdown, with the sums."""
    ends = range(1, 2 + len(ENDS))
    sums = ["" if column not in ends else str(sum(int(row[column]) for row in found.values()))
            for column in range(len(COLUMNS) - 1)]
    lines = [[*COLUMNS], ["---"] * len(COLUMNS), *([kind, *found[kind]] for kind in sorted(found)), ["all", *sums]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def known_rows(text: str) -> dict[str, list[str]]:
    """The rows of a table that was written before, of the kinds that there still are."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    return {kind: rest for kind, *rest in cells if kind in KINDS and len(rest) == len(COLUMNS) - 1}


def write_report(path: Path, counts: dict[str, Count], seed: int) -> None:
    """Replace the rows of these kinds between the marks; the rest stays as it is."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    found = known_rows(old) | rows(counts, seed)
    said = (f"{datetime.date.today():%Y-%m-%d}, one core, Python {platform.python_version()}, torch "
            f"{torch.__version__}, {platform.system()}:")
    faults = "".join(f"- `{fault.splitlines()[0][:220]}`\n" for count in counts.values() for fault in count.faults)
    listed = f"\nFaults that are not mended yet:\n\n{faults}" if faults else ""
    path.write_text(f"{before}{BEGIN}\n{said}\n\n{table(found)}\n{listed}{END}{after}", encoding="utf-8")
