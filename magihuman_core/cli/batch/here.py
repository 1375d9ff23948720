"""Jobs one after another, in this process."""

import time
from collections.abc import Callable, Iterator, Sequence

from ...errors import InputError
from .jobs import Job
from .maker import Maker
from .records import Outcome

ShowJob = Callable[[Job, float, str], None]  # a job, the share of it that is done, and what is done now


def too_long(timeout: float) -> str:
    """The sentence of a job that took longer than allowed."""
    return f"took more than {timeout:g} s. Allow more (--timeout), or ask for a shorter or smaller clip."


def run_here(jobs: Sequence[Job], *, timeout: float | None, show: ShowJob) -> Iterator[tuple[Job, Outcome]]:
    """Each job with its outcome, as soon as it is known. timeout: seconds for one; noticed when progress is told."""
    maker = Maker()
    for job in jobs:
        yield job, _make(maker, job, timeout, show)


def _make(maker: Maker, job: Job, timeout: float | None, show: ShowJob) -> Outcome:
    started = time.monotonic()

    def watched(share: float, text: str) -> None:
        if timeout is not None and time.monotonic() - started > timeout:
            raise InputError(too_long(timeout))
        show(job, share, text)

    return maker.make(job, watched)
