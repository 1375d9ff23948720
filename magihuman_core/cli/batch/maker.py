"""Making the clip of one job, with models that stay loaded from one to the next."""

import argparse
import logging
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ...errors import TIP
from ..console import exit_code
from ..explain import details, explain
from ..options import make_pipeline, model_options
from ..progress import Overall
from .contents import file_digest
from .jobs import Job
from .page import write_thumbnail
from .records import Outcome

if TYPE_CHECKING:
    from ...pipeline.pipeline import MagiHumanPipeline

Show = Callable[[float, str], None]  # share of the clip that is done, and what is done now
log = logging.getLogger("magihuman_core")


class Progress(Overall):
    """Hands the progress of one clip on, and keeps the command's answers."""

    def __init__(self, show: Show) -> None:
        super().__init__()
        self.handed = show
        self.answers: list[str] = []

    def show(self, share: float, text: str) -> None:
        self.handed(share, text)

    def said(self, text: str) -> None:
        self.answers.append(text)


class Maker:
    """Makes clips one after another."""

    def __init__(self) -> None:
        self.pipeline: MagiHumanPipeline | None = None
        self.models: dict[str, Any] = {}  # the options that it was made with

    def make(self, job: Job, show: Show) -> Outcome:
        """Run a job's command; what goes wrong is in the outcome. Ctrl-C is passed on."""
        started, progress, trace = time.perf_counter(), Progress(show), ""
        with _remarks() as remarks:
            try:
                job.clear_leftovers()
                job.arguments.run(job.arguments, self._pipeline_for, lambda: nullcontext(progress))
                digest, error, code = file_digest(job.out), "", 0
                write_thumbnail(job)
            except Exception as raised:
                digest, trace = "", traceback.format_exc()
                error, code = "\n".join((*details(raised), explain(raised))), exit_code(raised)
        return Outcome("\n".join(progress.answers), error, code, digest, round(time.perf_counter() - started, 2),
                       platform.node(), remarks=remarks, trace=trace)

    def _pipeline_for(self, arguments: argparse.Namespace) -> "MagiHumanPipeline":
        """The one before, with its loaded parts, where the models are the same."""
        wanted = {name: getattr(arguments, name) for name in model_options()}
        if self.pipeline is None or self.models != wanted:
            self.pipeline = None  # its memory is free before another begins
            self.pipeline, self.models = make_pipeline(arguments, keep=True), wanted
        return self.pipeline


@contextmanager
def _remarks() -> Iterator[list[str]]:
    """What the library's log tells people while the block runs."""
    remarks: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= TIP:
                remarks.append(record.getMessage())

    handler, level = Keep(), log.level
    log.addHandler(handler)
    log.setLevel(min(log.getEffectiveLevel(), TIP))  # a worker's own tells warnings only
    try:
        yield remarks
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
