"""A progress bar for each stage, on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress callback that draws one bar, with the time left, for each stage."""
    from tqdm import tqdm

    bar, shown = None, None

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal bar, shown
        if stage != shown:
            if bar is not None:
                bar.close()
            bar, shown = tqdm(total=total, desc=stage, leave=False, file=sys.stderr), stage
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    try:
        yield progress
    finally:
        if bar is not None:
            bar.close()
