"""The command itself: reads the jobs, leaves out what is made already, has the rest made, and tells of it."""

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from ...errors import TIP, InputError
from ..console import Exit, plain
from ..options import add_models
from ..progress import open_bar
from .cluster import check_answers, has_ray, run_on_ray
from .contents import Contents
from .here import run_here
from .jobs import Job, read_jobs
from .page import PAGE, check_page, write_page
from .records import Outcome, Records

log = logging.getLogger("magihuman_core")
REDRAW, REDRAW_IN_LOG = 0.5, 30.0  # seconds, on a terminal and elsewhere
REWRITE = 5.0  # seconds between two writings of the page, which tells of all clips


def add_batch(commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "batch", parents=[common], help="make many clips, on many cards and machines",
        description='Make a clip for each line of a jobs file, side by side on all GPUs of this machine or of a Ray '
                    'cluster; without Ray one after another. A line is JSON with the options of generate, or of the '
                    '"command" that it names (dub, extend, retake), such as {"prompt": "...", "audio": "voice.wav", '
                    '"seed": 3}. Files to read are relative to the jobs file. Run it again to go on after an '
                    'interruption: what is made already is left out. See docs/batch.md.')
    parser.set_defaults(run=batch)
    parser.add_argument("jobs", metavar="JOBS", help="the jobs file (.jsonl)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the clips, manifest.json and a page "
                        "that shows them, index.html; on a cluster one that all machines share")
    parser.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster: HOST:PORT, ray://HOST:PORT, or auto "
                        "for the one on this machine (default: RAY_ADDRESS, or this machine alone)")
    parser.add_argument("--workers", type=_whole, metavar="N", help="clips that are made at once (default: one for "
                        "each GPU, or for every 4 CPUs); 0: one after another, without Ray")
    parser.add_argument("--timeout", type=_seconds, metavar="S", help="seconds that a clip may take (default: any)")
    parser.add_argument("--retries", type=_whole, default=2, metavar="N", help="how often a clip is begun anew whose "
                        "worker died or had an internal error; with Ray only (default %(default)s)")
    add_models(parser, required=False)


def batch(arguments: argparse.Namespace) -> int:
    """Make the clips; gives the exit code of the worst failure."""
    folder = Path(arguments.out).absolute()
    address = arguments.address or os.environ.get("RAY_ADDRESS")
    use_ray = _chooses_ray(arguments, address)
    jobs = read_jobs(arguments.jobs, folder, arguments)
    if use_ray and address:
        check_answers(address)
    contents = Contents()
    contents.check_models(arguments.jobs, jobs)
    records = Records(folder)
    if not records.clips:  # a folder that is not this command's yet
        check_page(folder)
    identities = {job.name: contents.identity(job) for job in jobs}
    outcomes = {job.name: outcome for job in jobs if (outcome := records.made(job, identities[job.name])) is not None}
    before = len(outcomes)
    todo = [job for job in jobs if job.name not in outcomes]
    write_page(jobs, outcomes, folder)
    written = time.monotonic()
    with (ExitStack() as last, _board(len(jobs), before) as board,
          closing(_run(todo, arguments, use_ray, address, board)) as results):
        last.callback(write_page, jobs, outcomes, folder)
        said: set[str] = set()
        for job, outcome in results:
            if not outcome.error and not job.out.is_file():
                outcome = replace(outcome, error=f"{outcome.host} wrote it, but it is not seen here. Choose a folder "
                                                 "that all machines share (--out).", code=Exit.INPUT)
            outcomes[job.name] = outcome
            records.write(job, identities[job.name], outcome)
            if time.monotonic() - written > REWRITE:
                write_page(jobs, outcomes, folder)
                written = time.monotonic()
            board.done(job, outcome)
            if outcome.trace:
                log.log(logging.ERROR if outcome.code == Exit.INTERNAL else logging.DEBUG, "%s", outcome.trace)
            for remark in outcome.remarks if use_ray else ():  # in this process they were said when they arose
                if remark not in said:
                    said.add(remark)
                    log.log(TIP, "%s: %s", job.name, remark)
    failed = [outcome for outcome in outcomes.values() if outcome.error]
    parts = [f"{len(jobs) - len(failed)} of {len(jobs)} clips are there"]
    parts += [f"{before} of them from before"] if before else []
    parts += [f"{len(failed)} failed"] if failed else []
    print(plain(f"{', '.join(parts)}: {folder / PAGE}"))
    return max((outcome.code for outcome in failed), default=Exit.DONE)


def _chooses_ray(arguments: argparse.Namespace, address: str | None) -> bool:
    """Whether the jobs go to Ray's workers. Raises InputError for an address that cannot be used."""
    if arguments.workers == 0:
        if arguments.address:
            raise InputError("--workers 0 makes the clips in this process, but --address names a cluster. Leave one of "
                             "them out.")
        return False
    if has_ray():
        return True
    if address:
        raise InputError(f"{address}: is the address of a Ray cluster, but Ray is not installed. Install it (pip "
                         "install \"magihuman[batch]\"), or give no address (--address, RAY_ADDRESS).")
    log.log(TIP, "Ray is not installed, so the clips are made one after another. For several at once: pip install "
                 "\"magihuman[batch]\".")
    return False


def _run(jobs: Sequence[Job], arguments: argparse.Namespace, use_ray: bool, address: str | None, board: "Board"
         ) -> Generator[tuple[Job, Outcome], None, None]:
    """Each job with its outcome, as soon as it is known."""
    if not jobs:
        return
    if use_ray:
        board.say("waiting for a worker")
        yield from run_on_ray(jobs, address=address, workers=arguments.workers,
                              gpus=arguments.device != "cpu", timeout=arguments.timeout, retries=arguments.retries,
                              show=board.show)
    else:
        yield from run_here(jobs, timeout=arguments.timeout, show=board.show)


class Board:
    """One bar over all clips; what is known of each goes past it."""

    def __init__(self, bar, count: int, made: int) -> None:
        self.bar, self.count, self.ended, self.there = bar, count, made, made
        self.begun: dict[str, float] = {}  # shares of clips that are made now
        self.drawn = 0.0

    def say(self, text: str) -> None:
        self.bar.n = self.ended + sum(self.begun.values())
        self.bar.set_description_str(f"{self.ended} of {self.count} clips{'; ' if text else ''}{text}")

    def show(self, job: Job, share: float, text: str) -> None:
        """share: of a clip. Drawn now and then."""
        self.begun[job.name] = share
        now = time.monotonic()
        if now - self.drawn < (REDRAW if self.bar.fp.isatty() else REDRAW_IN_LOG):
            return
        self.drawn = now
        self.say(f"{len(self.begun)} in work" if len(self.begun) > 1 else plain(f"{job.name}, {text}"))

    def done(self, job: Job, outcome: Outcome) -> None:
        self.begun.pop(job.name, None)
        self.ended += 1
        self.there += not outcome.error
        self.bar.clear()
        if outcome.error:
            print(plain(f"line {job.line}, {job.name}: {outcome.error}"), file=sys.stderr)
        else:
            print(plain(outcome.answer), flush=True)
        self.say("")


@contextmanager
def _board(count: int, made: int) -> Iterator[Board]:
    """The bar, while the block runs. count: clips; made: those that are there already."""
    with open_bar(count, made) as bar:
        board = Board(bar, count, made)
        try:
            yield board
        except KeyboardInterrupt:
            bar.clear()
            print(f"\n{board.there} of {count} clips are there. The same command goes on with the others.",
                  file=sys.stderr)
            raise


def _whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value
