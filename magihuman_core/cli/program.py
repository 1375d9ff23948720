"""The command line: magihuman demo | generate | dub | retake | extend | live | decode | inspect | convert.

Answers go to standard output; progress, timings and errors to standard error. Exit codes: 0 done; 2 the input
or a file cannot be used, said in one sentence; 1 an internal error; 130 interrupted by Ctrl-C.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..errors import CheckpointError, InputError, is_out_of_memory
from .convert import add_convert
from .decode import add_decode
from .demo import add_demo
from .edits import add_dub, add_extend, add_retake
from .generate import add_generate
from .inspect import add_inspect
from .live import add_live

INTERRUPTED = 130

log = logging.getLogger("magihuman_core")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code. argv: without the program's name; None: sys.argv's."""
    arguments = build_parser().parse_args(argv)
    with _logging(arguments.verbose), _termination():
        return _run(arguments)


def build_parser() -> argparse.ArgumentParser:
    """A command is a function add_NAME(subparsers) that sets `run`, a function of the parsed arguments."""
    parser = argparse.ArgumentParser(
        prog="magihuman",
        description="A person who speaks, picture and sound made together (daVinci-MagiHuman).")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="say more; show where an error arose")
    for add in (add_demo, add_generate, add_dub, add_retake, add_extend, add_live, add_decode, add_inspect,
                add_convert):
        add(commands, common)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        # On a line of its own: the terminal's ^C, or half a progress bar, may stand on this one.
        print("\nmagihuman: interrupted; nothing was written.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if arguments.verbose:
            log.exception("where the error arose:")
        message, code = _explain(error)
        print(f"magihuman: {message}", file=sys.stderr)
        return code


def _explain(error: Exception) -> tuple[str, int]:
    """A sentence for the user, and the exit code."""
    if isinstance(error, (InputError, CheckpointError)):
        return str(error), 2
    if is_out_of_memory(error):
        return ("there is not enough memory. Lower, in this order: --tile where the picture was being decoded (--save-"
                "latents keeps what is made, for magihuman decode); else --dtype fp8, then --resident-blocks, then the "
                "size (--upscale, --width, --height), then --seconds."), 2
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or error}. Check the file and the space on its disk.", 2
    return f"internal error: {type(error).__name__}: {error}. Run it with -v and report that.", 1


@contextmanager
def _logging(verbose: bool) -> Iterator[None]:
    """The library's log on standard error, while a command runs, past progress bars."""
    handler = _Handler()
    handler.setFormatter(_Formatter())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def _termination() -> Iterator[None]:
    """Let a termination signal clean up as Ctrl-C does, rather than leave a half-written file."""
    def stop(number: int, frame) -> None:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: its owner takes care of signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
