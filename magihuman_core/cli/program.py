"""The command line: magihuman demo | generate | inspect | convert.

Answers go to standard output; progress, timings and faults to standard error. Exit codes: 0 done; 2 the input
or a file cannot be used, said in one sentence; 1 a fault of this program; 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError, InputError
from .demo import add_demo
from .progress import bars

MAX_PROMPT_FILE = 1 << 20  # bytes; a prompt has about a thousand
DTYPES = {"auto": None, "bf16": "bfloat16", "fp32": "float32", "fp8": "float8_e4m3fn", "int8": "int8"}
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
    for add in (add_demo, add_generate, add_inspect, add_convert):
        add(commands, common)
    return parser


# generate


def add_generate(commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("generate", parents=[common], help="make a clip",
                                 description="Make a clip of a speaking person, as mp4.")
    parser.set_defaults(run=generate)
    parser.add_argument("--models", required=True, metavar="FOLDER", help="folder of models, or: demo")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="what is seen and heard")
    prompt.add_argument("--prompt-file", metavar="FILE", help="the same, from a UTF-8 text file")
    parser.add_argument("--image", metavar="FILE", help="picture of the person: the first frame")
    parser.add_argument("--audio", metavar="FILE", help="voice that drives the clip and is its sound")
    parser.add_argument("--out", metavar="FILE", default="clip.mp4",
                        help="the mp4 to write (default %(default)s); an existing one is replaced")
    parser.add_argument("--seconds", type=float, metavar="S", help="length (default 4, or that of --audio)")
    parser.add_argument("--width", type=int, default=448, metavar="N", help="pixels (default %(default)s)")
    parser.add_argument("--height", type=int, default=256, metavar="N", help="pixels (default %(default)s)")
    parser.add_argument("--upscale", type=_target, metavar="SIZE",
                        help="second pass at 540p, 1080p or WIDTHxHEIGHT")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed gives another clip "
                        "(default %(default)s)")
    parser.add_argument("--mode", choices=("distilled", "base"),
                        help="which network, where the folder has both (default distilled)")
    parser.add_argument("--steps", type=int, metavar="N", help="default 8 for distilled, 32 for base")
    parser.add_argument("--sr-steps", type=int, default=5, metavar="N",
                        help="steps of the second pass (default %(default)s)")
    parser.add_argument("--negative-file", metavar="FILE", help="text of what to avoid, for mode base")
    parser.add_argument("--part", action="append", default=[], type=_part, metavar="NAME=FILE",
                        help="take a part of the model from elsewhere, as in audio_vae=/data/sd.safetensors")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", choices=DTYPES, default="auto",
                        help="what weights of network and text encoder are kept in (auto: bf16, or the 8 bits they are "
                        "stored in; fp32 for small models on a CPU); fp8 and int8 take half of bf16's memory")
    parser.add_argument("--lora", action="append", default=[], type=_lora, metavar="FILE[:STRENGTH]",
                        help="change the base or distilled network by a LoRA; may be given several times")
    parser.add_argument("--resident-blocks", type=int, metavar="N",
                        help="keep only N of the network's blocks in memory and bring in the others when needed: "
                        "slower, for little memory (default all)")
    parser.add_argument("--tile", type=int, metavar="N",
                        help="decode the picture in squares of N x 16 pixels, for little memory (default whole)")


def generate(arguments: argparse.Namespace) -> int:
    """Make a clip and write it."""
    from ..media.mp4 import check_output

    # What is quickly checked comes first: nobody should wait minutes for a wrong file name.
    out = check_output(arguments.out)
    prompt, negative = arguments.prompt, None
    if arguments.prompt_file is not None:
        prompt = read_text(arguments.prompt_file, "prompt")
    if arguments.negative_file is not None:
        negative = read_text(arguments.negative_file, "negative prompt")

    import torch

    from ..pipeline.pipeline import MagiHumanPipeline

    dtype = DTYPES[arguments.dtype]
    pipeline = MagiHumanPipeline.from_folder(
        arguments.models, parts=dict(arguments.part), device=arguments.device,
        dtype=dtype and getattr(torch, dtype), resident_blocks=arguments.resident_blocks, tile=arguments.tile,
        loras=arguments.lora)
    same = ("image", "audio", "seconds", "width", "height", "seed", "steps", "mode", "upscale", "sr_steps")
    with bars() as progress:
        clip = pipeline.generate(prompt, negative=negative, progress=progress,
                                 **{name: getattr(arguments, name) for name in same})
    clip.save(out)
    count, height, width, _ = clip.frames.shape
    print(f"{out}: {count / clip.fps:.2f} s, {width}x{height}, {count} frames with sound")
    return 0


def read_text(path: str, what: str) -> str:
    """A small UTF-8 text file. Raises InputError."""
    file = Path(path)
    try:
        if file.stat().st_size > MAX_PROMPT_FILE:
            raise InputError(f"{file}: is too large for a {what}. Give a text file.")
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{file}: the {what} cannot be read ({reason}). Check the name.") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: the {what} is not UTF-8 text. Save it as UTF-8.") from None
    if not text.strip():
        raise InputError(f"{file}: the {what} is empty. Write something into it.")
    return text.strip()


def _target(text: str) -> str | tuple[int, int]:
    width, x, height = text.lower().partition("x")
    return (int(width), int(height)) if x and width.isdigit() and height.isdigit() else text


def _lora(text: str) -> tuple[str, float]:
    file, colon, strength = text.rpartition(":")
    if colon:
        try:
            return file, float(strength)
        except ValueError:
            pass  # the colon belongs to the name, as in C:\\lora.safetensors
    return text, 1.0


def _part(text: str) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=FILE")
    return name, file


# inspect


def add_inspect(commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("inspect", parents=[common], help="explain a weight file or folder",
                                 description="Say what a weight file, or each file of a folder, is: kind, "
                                             "role, layout, size, dtypes, and problems.")
    parser.set_defaults(run=inspect)
    parser.add_argument("path", metavar="PATH", help="file, index file or folder")
    parser.add_argument("--read-all", action="store_true", help="read every tensor, to find damaged values")


def inspect(arguments: argparse.Namespace) -> int:
    """Explain weights."""
    from ..tools.inspect import describe

    print(describe(arguments.path, read_all=arguments.read_all))
    return 0


# convert


def add_convert(commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "convert", parents=[common], help="write weights as one file, in another dtype or layout",
        description="Write any weight file or folder of MagiHuman as one .safetensors file. Memory stays small "
                    "however large the model is, and the file appears only when it is whole.")
    parser.set_defaults(run=convert)
    parser.add_argument("source", metavar="SOURCE", help="file, index file or folder, in any known layout")
    parser.add_argument("target", metavar="TARGET", help="the .safetensors file to write; an existing one is replaced")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32", "fp8", "int8"),
                        help="default: as stored, and bf16 for what is quantized")
    parser.add_argument("--layout", choices=("official", "split"),
                        help="of a network (default: official; split for fp8 and int8)")
    parser.add_argument("--role", choices=("base", "distilled", "sr_540p", "sr_1080p"),
                        help="of a network, written into the file (default: what its name tells)")


def convert(arguments: argparse.Namespace) -> int:
    """Convert weights."""
    from tqdm import tqdm

    from ..tools.convert import convert as write
    from ..tools.inspect import size_text

    with tqdm(unit="B", unit_scale=True, unit_divisor=1024, desc="converting", leave=False) as bar:
        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        path = write(arguments.source, arguments.target, dtype=arguments.dtype, layout=arguments.layout,
                     role=arguments.role, progress=progress)
    print(f"{path}: {size_text(path.stat().st_size)} written")
    return 0


# What all commands share


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
    # torch says so in three ways; on a CPU it is a plain RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(
            error):
        return ("there is not enough memory. When making a clip, choose a smaller size, fewer seconds, --dtype fp8, "
                "--resident-blocks or --tile."), 2
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or error}. Check the file and the space on its disk.", 2
    return f"fault of this program: {type(error).__name__}: {error}. Run it with -v and report that.", 1


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
