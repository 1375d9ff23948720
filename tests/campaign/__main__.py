"""A fault campaign: thousands of damaged files, absurd wishes and accidents, each judged by what it leaves.

    python -m tests.campaign --minutes 20 --seed 1 [--kind NAME] [--report docs/reliability.md]
    python -m tests.campaign --minutes 0 --cases 6          so many of each kind, as the tests do
    python -m tests.campaign --seed 1 --kind weights --case 17      one case again, with what it said

The kinds get equal time. Exit code 1 where faults were found; each is printed with the command that repeats it.
"""

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from .campaign import KINDS, run_campaign, run_case
from .report import rows, table, write_report
from .workshop import Workshop


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--cases", type=int, default=1, help="of each kind, however long they take")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="only these")
    parser.add_argument("--case", type=int, help="only this one, of one kind")
    parser.add_argument("--report", type=Path, help="file whose table gets the rows of these kinds")
    if "graphs" not in KINDS:
        print("NO COMFYUI FOUND: the kind graphs is left out. Set COMFYUI_PATH to a checkout.")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends, too
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        with workshop.closing:
            if arguments.case is not None:
                for kind in arguments.kind or ():
                    print(run_case(workshop, kind, arguments.seed, arguments.case))
                return 0
            counts = run_campaign(workshop, arguments.kind or sorted(KINDS), arguments.seed, cases=arguments.cases,
                                  seconds=arguments.minutes * 60, tell=lambda fault: print(fault, flush=True))
    print(table(rows(counts, arguments.seed)))
    if arguments.report is not None:
        write_report(arguments.report, counts, arguments.seed)
    return int(any(count.faults for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
