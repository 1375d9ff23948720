"""The campaign's counts as a table, written by the program into docs/reliability.md."""

import datetime
import platform
from pathlib import Path

import torch

from .campaign import ENDS, KINDS, Count

BEGIN, END = "<!-- written by python -m tests.campaign: begin -->", "<!-- end -->"


def table(counts: dict[str, Count]) -> str:
    """In Markdown."""
    lines = [f"| kind | what | cases | {' | '.join(ENDS)} | struck | most until refused |", f"|{'---|' * 10}"]
    for kind, count in counts.items():
        what = (KINDS[kind].__doc__ or "").split("\n")[0].rstrip(".")
        ends = " | ".join(str(count.ends[end]) for end in ENDS)
        lines.append(f"| {kind} | {what} | {count.cases} | {ends} | {count.struck or ''} | {count.seconds:.1f} s, "
                     f"{count.memory >> 20} MiB |")
    total = [sum(count.ends[end] for count in counts.values()) for end in ENDS]
    lines.append(f"| all | | {sum(total)} | {' | '.join(map(str, total))} | | |")
    return "\n".join(lines)


def write_report(path: Path, counts: dict[str, Count], seed: int) -> None:
    """Replace what stands between the marks; the rest stays as it is."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    minutes = sum(count.spent for count in counts.values()) / 60
    said = (f"{datetime.date.today():%Y-%m-%d}, seed {seed}, {minutes:.0f} minutes on one core, Python "
            f"{platform.python_version()}, torch {torch.__version__}, {platform.system()}:")
    faults = "".join(f"- `{fault.splitlines()[0][:220]}`\n" for count in counts.values() for fault in count.faults)
    listed = f"\nFaults that are not mended yet:\n\n{faults}" if faults else ""
    path.write_text(f"{before}{BEGIN}\n{said}\n\n{table(counts)}\n{listed}{END}{after}", encoding="utf-8")
