"""The command line: magihuman demo | generate | dub | retake | extend | batch | live | decode | inspect | convert.

Answers go to standard output; progress, tips and errors to standard error, and with -v timings and memory. Exit codes
stand in console.Exit and docs/messages.md.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from ..errors import TIP, LostRankError
from .batch import add_batch
from .console import Exit, exit_code, lasting_streams, plain
from .convert import add_convert
from .decode import add_decode
from .demo import add_demo
from .edits import add_dub, add_extend, add_retake
from .explain import details, explain
from .generate import add_generate
from .inspect import add_inspect
from .live import add_live
from .parser import Parser
from .signals import STOPPED, unwinding
from .version import version

if TYPE_CHECKING:
    from ..pipeline.crew import Crew

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
    "batch": ["batch jobs.jsonl --out clips --models demo",
              "batch jobs.jsonl --out /shared/clips --models /shared/models --address auto --timeout 1800"],
    "live": ["live --models ComfyUI/models --prompt-file prompt.txt --image photo.jpg --audio voice.wav "
             "--out face.mp4"],
    "decode": ["decode latents.safetensors --models ComfyUI/models --out clip.mp4"],
    "inspect": ["inspect ComfyUI/models", "inspect ComfyUI/models --for \"picture voice 540p\"",
                "inspect --for \"text\" --memory 16", "inspect demo"],
    "convert": ["convert ComfyUI/models/diffusion_models/magihuman/distill distill_int8.safetensors --dtype int8"],
}

log = logging.getLogger("magihuman_core")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code. argv: without the program's name; None: sys.argv's.

    Of several processes that torchrun started the first runs it, and calls the others where it needs them.
    """
    if not started_together():
        with unwinding():
            return _main(argv, None)
    from ..pipeline.crew import Crew

    crew = Crew.join()
    crew.watch(partial(_say, crew))
    with unwinding():
        try:
            if not crew.rank:
                return _main(argv, crew)
            with _logging(verbose=not {"-v", "--verbose"}.isdisjoint(sys.argv)):
                return crew.serve(partial(_say, crew))
        except KeyboardInterrupt:  # in a helper; the leader has it, too, and says so
            return Exit.INTERRUPTED
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
    with lasting_streams(), _logging(arguments.verbose):
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
    for add in (add_demo, add_generate, add_dub, add_retake, add_extend, add_batch, add_live, add_decode, add_inspect,
                add_convert):
        add(commands, common)
    for name, command in commands.choices.items():
        command.formatter_class = _Help
        command.epilog = "examples:\n" + "\n".join(f"  magihuman {line}" for line in EXAMPLES[name])
    return parser


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
        return Exit.INTERRUPTED
    except BrokenPipeError:  # the reader of a live clip has seen enough
        return Exit.DONE
    except Exception as error:
        return _say(arguments.crew, error)


def _say(crew: "Crew | None", error: Exception) -> int:
    """Tell of an error, unless another process of the same run has; gives the exit code."""
    code = exit_code(error)
    if crew is None or crew.first_to_speak():
        level = logging.ERROR if code == Exit.INTERNAL else logging.DEBUG  # nobody should have to make it happen again
        log.log(level, "where the error arose:", exc_info=error)
        for line in details(error):
            print(plain(line), file=sys.stderr)
        whose = f"process {crew.rank} of {crew.count}: " if crew is not None and crew.rank else ""
        print(f"magihuman: {whose}{plain(explain(error))}", file=sys.stderr, flush=True)
    return code


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
