"""Progress on standard error: one bar for all stages of a clip, with the time that is left."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Shares of the time, as far as they can be known before: of the stages that are still to come.
SHARES = {"network": 0.65, "picture decoder": 0.35}


class Overall:
    """A progress callback (stage, done, total) that draws one bar over all stages.

    Networks count for about two thirds of a clip and its decoder for the rest; as a stage goes on, its own pace
    corrects what was assumed.
    """

    def __init__(self, bar) -> None:
        self.bar, self.started = bar, time.monotonic()
        self.fractions: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.fractions[stage] = done / total
        networks = [fraction for name, fraction in self.fractions.items() if name != "picture decoder"]
        decoder = self.fractions.get("picture decoder", 0.0)
        share = sum(networks) / max(len(networks), 1)
        fraction = SHARES["network"] * (1.0 if decoder else share) + SHARES["picture decoder"] * decoder
        self.bar.set_description_str(f"{stage} {done}/{total}", refresh=False)
        self.bar.n = max(self.bar.n, round(1000 * fraction))
        self.bar.refresh()

    def said(self, text: str) -> None:
        """Print an answer on standard output, past the bar."""
        self.bar.clear()
        print(text, flush=True)


@contextmanager
def overall() -> Iterator[Overall]:
    """The bar, while the block runs."""
    from tqdm import tqdm

    layout = "{percentage:3.0f}% |{bar}| {desc} [{elapsed}, about {remaining} left]"
    with tqdm(total=1000, leave=False, file=sys.stderr, bar_format=layout) as bar:
        yield Overall(bar)
