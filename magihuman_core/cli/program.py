"""The command line: magihuman demo | generate | dub | retake | extend | live | decode | inspect | convert.

Answers go to standard output; progress, tips and errors to standard error, and with -v timings and memory. Exit codes:
0 done; 2 the input or a file cannot be used, said in one sentence; 1 an internal error, or problems that `inspect`
found; 130 interrupted by Ctrl-C.
"""

import argparse
import difflib
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from ..errors import TIP, CheckpointError, InputError, LostRankError, is_out_of_memory
from .convert import add_convert
from .decode import add_decode
from .demo import add_demo
from .edits import add_dub, add_extend, add_retake
from .generate import add_generate
from .inspect import add_inspect
from .live import add_live

if TYPE_CHECKING:
    from ..pipeline.crew import Crew

INTERRUPTED = 130
STOPPED = 128 + signal.SIGTERM
LOST = ("another process of this run has ended without a word, so the clip cannot be made. Was it stopped, by somebody "
        "or for want of memory?")
# Lines of a shell for each command; every shell understands them.
EXAMPLES = {
    "demo": ["demo", "demo --seed 3 --out mine.mp4"],
    "generate": ["generate --models demo --prompt \"A happy woman says: ma so mi\" --out demo.mp4",
                 "generate --models ComfyUI/models --prompt-file prompt.txt --image photo.jpg --audio voice.wav "
                 "--upscale 540p",
                 "generate --models ComfyUI/models --prompt-file prompt.txt --width 256 --height 448 --upscale 540p"],
    "dub": ["dub clip.mp4 --audio voice.wav --models ComfyUI/models --prompt-file prompt.txt"],
    "retake": ["retake clip.mp4 --start 1.5 --end 2.5 --models ComfyUI/models"],
    "extend": ["extend clip.mp4 --seconds 4 --models ComfyUI/models --prompt-file prompt.txt"],
    "live": ["live --models ComfyUI/models --prompt-file prompt.txt --image photo.jpg --audio voice.wav"],
    "decode": ["decode latents.safetensors --models ComfyUI/models --out clip.mp4"],
    "inspect": ["inspect ComfyUI/models", "inspect ComfyUI/models --for \"picture voice 540p\"",
                "inspect --for \"text\" --memory 16", "inspect demo"],
    "convert": ["convert ComfyUI/models/diffusion_models/magihuman/distill distill_int8.safetensors --dtype int8"],
}

log = logging.getLogger("magihuman_core")


class Parser(argparse.ArgumentParser):
    """A parser that says what may have been meant."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']*)'", message) or re.search(r"unrecognized arguments: (--?[\w-]+)",
                                                                              message)
        if wrong and (close := difflib.get_close_matches(wrong[1], self.known, n=1)):
            message += f". Did you mean {close[0]}?"
        super().error(message)

    @property
    def known(self) -> list[str]:
        """All options and choices of this parser, and of the commands below it."""
        found: list[str] = []
        for action in self._actions:
            found += [*action.option_strings, *map(str, action.choices or ())]
            if isinstance(action.choices, dict):
                found += [name for parser in action.choices.values() if isinstance(parser, Parser)
                          for name in parser.known]
        return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code. argv: without the program's name; None: sys.argv's.

    Of several processes that torchrun started the first runs it, and calls the others where it needs them.
    """
    if not started_together():
        return _main(argv, None)
    from ..pipeline.crew import Crew

    crew = Crew.join()
    crew.watch(partial(_say, crew))
    with _termination():
        try:
            return crew.serve(partial(_say, crew)) if crew.rank else _main(argv, crew)
        except KeyboardInterrupt:  # in a helper; the leader has it, too, and says so
            return INTERRUPTED
        except SystemExit as stopped:  # by a signal, which torchrun sends where another process has ended
            if stopped.code == STOPPED:
                _say(crew, LostRankError())
            raise
        finally:
            if not crew.rank:
                crew.end()


def started_together() -> bool:
    """Whether torchrun started several processes, of which this is one."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return all(name in os.environ for name in names) and os.environ["WORLD_SIZE"] != "1"


def _main(argv: Sequence[str] | None, crew: "Crew | None") -> int:
    parser = build_parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help()
        return 0
    arguments = parser.parse_args(argv)
    arguments.crew = crew
    with _logging(arguments.verbose), _termination():
        return _run(arguments)


def build_parser() -> argparse.ArgumentParser:
    """A command is a function add_NAME(subparsers) that sets `run`, a function of the parsed arguments."""
    parser = Parser(
        prog="magihuman", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="A person who speaks, picture and sound made together (daVinci-MagiHuman).",
        epilog="First try: magihuman demo\n"
               "What is missing for a clip: magihuman inspect ComfyUI/models --for \"picture voice 540p\"")
    parser.add_argument("--version", action="version", version=f"magihuman {version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true",
                        help="say more: times, memory, and where an error arose")
    for add in (add_demo, add_generate, add_dub, add_retake, add_extend, add_live, add_decode, add_inspect,
                add_convert):
        add(commands, common)
    for name, command in commands.choices.items():
        command.formatter_class = _Help
        command.epilog = "examples:\n" + "\n".join(f"  magihuman {line}" for line in EXAMPLES[name])
    return parser


def version() -> str:
    """This package's version: of what is installed, or else of the folder it lies in."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed
    from pathlib import Path

    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file() and (found := re.search(r'^version = "([^"]+)"', project.read_text(encoding="utf-8"), re.M)):
        return found[1]
    try:
        return installed("magihuman")
    except PackageNotFoundError:
        return "of unknown version"


class _Help(argparse.HelpFormatter):
    """Wraps texts, but for examples, whose lines stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


def _run(arguments: argparse.Namespace) -> int:
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        if arguments.crew is not None:
            arguments.crew.first_to_speak()
        # On a line of its own: the terminal's ^C, or half a progress bar, may stand on this one.
        print("\nmagihuman: interrupted; no file is left half-written.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if arguments.verbose:
            log.exception("where the error arose:")
        return _say(arguments.crew, error)


def _say(crew: "Crew | None", error: Exception) -> int:
    """Tell of an error, unless another process of the same run has; gives the exit code."""
    message, code = _explain(error)
    if crew is None or crew.first_to_speak():
        for line in _sources(error):
            print(line, file=sys.stderr)
        whose = f"process {crew.rank} of {crew.count}: " if crew is not None and crew.rank else ""
        print(f"magihuman: {whose}{message}", file=sys.stderr, flush=True)
    return code


def _sources(error: Exception) -> Iterator[str]:
    """Of missing parts, where they can be had."""
    if parts := getattr(error, "parts", ()):
        from ..loading.wishes import look, missing_in_words

        yield from missing_in_words(look(None, parts))


def _explain(error: Exception) -> tuple[str, int]:
    """A sentence for the user, and the exit code."""
    if isinstance(error, (InputError, CheckpointError)):
        return str(error), 2
    if is_out_of_memory(error):
        return ("there is not enough memory. Lower, in this order: --tile where the picture was being decoded (--save-"
                "latents keeps what is made, for magihuman decode); else --dtype fp8, then --resident-blocks, then the "
                "size (--upscale, --width, --height), then --seconds."), 2
    if isinstance(error, LostRankError):
        return LOST, 1
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or error}. Check the file and the space on its disk.", 2
    return (f"internal error: {type(error).__name__}: {error}. Run it again with -v, and report what it says on the "
            "project's page, under Issues."), 1


@contextmanager
def _logging(verbose: bool) -> Iterator[None]:
    """The library's log on standard error, while a command runs, past progress bars."""
    handler = _Handler()
    handler.setFormatter(_Formatter())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if verbose else TIP)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno == TIP:
            return f"tip: {text}"
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
