"""README's table of graphics cards: what fits and how long a clip takes, as `magihuman inspect --for` says it of one.

usage: python -m benchmarks.gpu_table [--write]

For each size of memory one common card, with files in 8 bits and clips of 5 seconds. --write puts it into README.md.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from magihuman_core.loading.fits import Fit, fit
from magihuman_core.loading.wishes import parse_wish
from magihuman_core.runtime.work import duration

from .blocks import written
from .estimates import card_of, target_of_card

README = Path(__file__).resolve().parents[1] / "README.md"
CARDS = ("RTX 3070", "RTX 3060", "RTX 4080", "RTX 4090", "RTX 5090", "L40S", "H100 80GB HBM3")
WISHES = {"448x256": "picture voice", "540p (896x512)": "picture voice 540p",
          "1080p (1920x1088)": "picture voice 1080p"}


def rows() -> Iterator[str]:
    """Lines of the table, in Markdown."""
    yield f"| card | {' | '.join(WISHES)} |"
    yield "|---" * (1 + len(WISHES)) + "|"
    for name in CARDS:
        card = card_of(name)
        cells = [_cell(fit(parse_wish(wish), target_of_card(card))) for wish in WISHES.values()]
        yield f"| {card.memory >> 30} GB ({name.split(' 80')[0]}) | {' | '.join(cells)} |"


def _cell(found: Fit) -> str:
    return duration(found.seconds) if found.runs else "does not fit"


def tables() -> dict[str, str]:
    return {"cards": "\n".join(rows())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    if parser.parse_args().write:
        README.write_text(written(README.read_text(encoding="utf-8"), tables()), encoding="utf-8")
    print(*tables().values())
