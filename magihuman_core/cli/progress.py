"""Progress on standard error: one bar for all stages of a clip, with the time that is left."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from .console import plain

# What people call the stages.
NAMES = {
    "text encoder": "reading the prompt", "reference picture": "reading the picture",
    "driving sound": "reading the voice", "picture of the clip": "reading the clip",
    "sound of the clip": "reading the clip",
    "distilled network": "picture and sound", "base network": "picture and sound",
    "sr_540p network": "enlarging", "sr_1080p network": "enlarging", "sound decoder": "writing the sound",
    "picture decoder": "writing the picture"}


class Overall(ABC):
    """A progress callback (stage, done, total) that knows the share of all stages that is done; see
    pipeline.shares.Watcher. What is shown of it, and where answers go, a subclass says."""

    def __init__(self) -> None:
        self.shares: list[tuple[str, float]] = []
        self.number = 0  # of the stage that runs, from 1 on
        self.stage = ""

    def plan(self, stages: Sequence[tuple[str, float]]) -> None:
        """What is to come."""
        self.shares = list(stages)

    def begin(self, stage: str) -> None:
        """A stage begins. One that was not planned counts, too."""
        name = stage.partition(",")[0]
        names = [planned for planned, _ in self.shares]
        if name in names[self.number:]:
            self.number += names[self.number:].index(name) + 1
        else:
            self.shares.insert(self.number, (name, 0.0))
            self.number += 1
        self.stage = name
        self._draw(0.0, "")

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.begin(stage)
        self._draw(done / max(total, 1), f" {done}/{total}" if total > 1 else "")

    def _draw(self, fraction: float, count: str) -> None:
        whole = sum(share for _, share in self.shares) or 1.0
        before = sum(share for _, share in self.shares[: self.number - 1])
        here = self.shares[self.number - 1][1] if self.number else 0.0
        name = NAMES.get(self.stage, self.stage)
        self.show((before + fraction * here) / whole, f"{self.number} of {len(self.shares)}: {name}{count}")

    @abstractmethod
    def show(self, share: float, text: str) -> None:
        """share: of all the work, from 0 to 1. text: what is done now."""

    @abstractmethod
    def said(self, text: str) -> None:
        """An answer of the command."""


Watch = Callable[[], AbstractContextManager[Overall]]  # progress, while a block runs


class Bar(Overall):
    """Draws one bar over all stages."""

    def __init__(self, bar) -> None:
        super().__init__()
        self.bar = bar

    def show(self, share: float, text: str) -> None:
        self.bar.set_description_str(text, refresh=False)
        self.bar.n = max(self.bar.n, share)
        self.bar.refresh()

    def said(self, text: str) -> None:
        """Print an answer on standard output, past the bar."""
        self.bar.clear()
        print(plain(text), flush=True)


@contextmanager
def overall() -> Iterator[Overall]:
    """The bar, while the block runs."""
    with open_bar() as bar:
        yield Bar(bar)


def open_bar(clips: int = 1, made: int = 0):
    """A bar over so many clips, on standard error."""
    from tqdm import tqdm

    return tqdm(total=clips, initial=made, leave=False, file=sys.stderr,
                bar_format="{percentage:3.0f}% |{bar:20}| {desc} [{elapsed}, about {remaining} left]")
