"""Pages in which programs write tables: what stands between two marks is replaced, and all else is kept.

    <!-- python -m benchmarks.scale_table --write: clip -->
    ...
    <!-- end -->
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from magihuman_core import InputError

BLOCK = re.compile(r"(<!-- python -m benchmarks[.\w]* --write: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def check_blocks(text: str, names: Iterable[str]) -> None:
    """Raise InputError unless a page has the marks of each of these tables once, and no others."""
    wanted, there = set(names), Counter(name for _, name, _ in BLOCK.findall(text))
    if there != Counter(wanted):
        raise InputError(f"The page has the marks of the tables {', '.join(sorted(there.elements())) or '(none)'}, "
                         f"expected {', '.join(sorted(wanted))}, each once. See benchmarks/blocks.py for their form.")


def written(text: str, tables: Mapping[str, str]) -> str:
    """A page with these tables. Raises InputError as check_blocks does."""
    check_blocks(text, tables)
    return BLOCK.sub(lambda found: f"{found[1]}{tables[found[2]].strip()}\n{found[3]}", text)
