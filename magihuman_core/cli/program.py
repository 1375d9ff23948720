"""The command line: magihuman demo | generate | dub | retake | extend | live | decode | inspect | convert.

Answers go to standard output; progress, tips and errors to standard error, and with -v timings and memory. Exit codes
stand in console.Exit and docs/messages.md.
"""

import argparse
import difflib
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from ..errors import TIP, CheckpointError, InputError, is_out_of_memory
from .console import Exit, exit_code, plain, print_anything
from .convert import add_convert
from .decode import add_decode
from .demo import add_demo
from .edits import add_dub, add_extend, add_retake
from .generate import add_generate
from .inspect import add_inspect
from .live import add_live

ENDING = ("SIGTERM", "SIGHUP", "SIGBREAK")  # a closed terminal sends the second, a closed window of Windows the third
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
    """Run a command; gives the exit code. argv: without the program's name; None: sys.argv's."""
    parser = build_parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help()
        return 0
    arguments = parser.parse_args(argv)
    print_anything()
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
        # On a line of its own: the terminal's ^C, or half a progress bar, may stand on this one.
        print("\nmagihuman: interrupted; no file is left half-written.", file=sys.stderr)
        return Exit.INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    except Exception as error:
        code = exit_code(error)
        if arguments.verbose or code == Exit.INTERNAL:  # which nobody should have to make happen again
            log.exception("where the error arose:")
        for line in _sources(error):
            print(plain(line), file=sys.stderr)
        print(f"magihuman: {plain(_explain(error))}", file=sys.stderr)
        return code


def _sources(error: Exception) -> Iterator[str]:
    """Of missing parts, where they can be had."""
    if parts := getattr(error, "parts", ()):
        from ..loading.wishes import look, missing_in_words

        yield from missing_in_words(look(None, parts))


def _explain(error: Exception) -> str:
    """A sentence for the user."""
    if isinstance(error, InputError | CheckpointError):
        return str(error)
    if is_out_of_memory(error):
        return ("there is not enough memory. Lower, in this order: --tile where the picture was being decoded (--save-"
                "latents keeps what is made, for magihuman decode); else --dtype fp8, then --resident-blocks, then the "
                "size (--upscale, --width, --height), then --seconds.")
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or error}. Check the file and the space on its disk."
    return (f"internal error: {type(error).__name__}: {error}. This is the program's fault: please report the lines "
            f"above and this one on the project's page, under Issues ({_environment()}).")


def _environment() -> str:
    """What a report should say of the machine."""
    import platform

    import torch

    found = {"magihuman": version(), "Python": platform.python_version(), "torch": torch.__version__}
    return ", ".join([*(f"{name} {number}" for name, number in found.items()), platform.platform()])


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
        text = plain(super().format(record))
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

    before = {}
    with suppress(ValueError):  # not the main thread: its owner takes care of signals
        for name in ENDING:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
