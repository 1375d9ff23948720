"""The kinds of cases, and how many of each are run."""

import contextlib
import random
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from . import accidents, files, graphs, wishes
from .judge import Case, Verdict
from .workshop import Workshop

Kind = Callable[[Workshop, random.Random], Case]
KINDS: dict[str, Kind] = {**wishes.KINDS, **files.KINDS, **accidents.KINDS, **graphs.KINDS}
ENDS = ("done", "refused", "stopped", "core", "fault")


@dataclass
class Count:
    """Of one kind: how its cases ended, the most time and memory that a refusal took, and the faults in words.

    struck: in how many the accident happened while the case worked, and not too late.
    """

    ends: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENDS, 0))
    struck: int = 0
    seconds: float = 0.0
    memory: int = 0
    faults: list[str] = field(default_factory=list)
    spent: float = 0.0

    @property
    def cases(self) -> int:
        return sum(self.ends.values())


def run_case(workshop: Workshop, kind: str, seed: int, number: int) -> Verdict:
    """The case of this number: the same one each time."""
    chance = random.Random(f"{seed} {kind} {number}")
    case = KINDS[kind](workshop, chance)
    try:
        verdict = case.judged()
        verdict.said = f"{case.words}: {verdict.said}"
    finally:
        if case.clean is not None:
            case.clean()
        with contextlib.suppress(OSError):
            shutil.rmtree(case.folder)
    return verdict


def run_campaign(workshop: Workshop, kinds: Iterable[str], seed: int, *, seconds: float = 0, cases: int = 1,
                 tell: Callable[[str], object]) -> dict[str, Count]:
    """So many cases of each kind, and more, for equal times, until the seconds are over. tell: is told each fault."""
    counts = {kind: Count() for kind in kinds}
    end = time.monotonic() + seconds
    while True:
        few = [kind for kind, count in counts.items() if count.cases < cases]
        if not few and time.monotonic() >= end:
            return counts
        kind = min(few or counts, key=lambda name: counts[name].spent)
        count = counts[kind]
        begin, number = time.monotonic(), count.cases
        verdict = run_case(workshop, kind, seed, number)
        count.spent += time.monotonic() - begin
        count.ends[verdict.kind] += 1
        count.struck += verdict.struck
        if verdict.kind == "refused":
            count.seconds, count.memory = max(count.seconds, verdict.seconds), max(count.memory, verdict.memory)
        if verdict.kind == "fault":
            count.faults.append(f"--seed {seed} --kind {kind} --case {number}: {verdict.why}: {verdict.said}")
            tell(count.faults[-1])
