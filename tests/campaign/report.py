"""The campaign's counts as a table, written by the program into docs/reliability.md."""

import datetime
import platform
from pathlib import Path

import torch

from .campaign import KINDS, Count

BEGIN, END = "<!-- written by python -m tests.campaign: begin -->", "<!-- end -->"


def table(counts: dict[str, Count]) -> str:
    """In Markdown."""
    lines = ["| kind | what | cases | done | refused | stopped | faults | most until refused |",
             "|---|---|---|---|---|---|---|---|"]
    for kind, count in counts.items():
        what = (KINDS[kind].__doc__ or "").split("\n")[0].rstrip(".")
        ends = count.ends
        lines.append(f"| {kind} | {what} | {count.cases} | {ends['done']} | {ends['refused']} | {ends['stopped']} | "
                     f"{ends['fault']} | {count.seconds:.1f} s, {count.memory >> 20} MiB |")
    total = {end: sum(count.ends[end] for count in counts.values()) for end in ("done", "refused", "stopped", "fault")}
    lines.append(f"| all | | {sum(total.values())} | {total['done']} | {total['refused']} | {total['stopped']} | "
                 f"{total['fault']} | |")
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
