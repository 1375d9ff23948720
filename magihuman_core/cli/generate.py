"""`magihuman generate`: a clip with the models of a folder."""

import argparse
from pathlib import Path

from ..errors import InputError
from ..recipes import BASE, DISTILLED, SR_540P
from .progress import bars

MAX_PROMPT_FILE = 1 << 20  # bytes; a prompt has about a thousand
DTYPES = {"auto": None, "bf16": "bfloat16", "fp32": "float32", "fp8": "float8_e4m3fn", "int8": "int8"}


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
    parser.add_argument("--width", type=int, default=BASE.width, metavar="N", help="pixels (default %(default)s)")
    parser.add_argument("--height", type=int, default=BASE.height, metavar="N", help="pixels (default %(default)s)")
    parser.add_argument("--upscale", type=_target, metavar="SIZE", help="second pass at 540p, 1080p or WIDTHxHEIGHT")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed gives another clip "
                        "(default %(default)s)")
    parser.add_argument("--mode", choices=("distilled", "base"),
                        help="which network, where the folder has both (default distilled)")
    parser.add_argument("--steps", type=int, metavar="N",
                        help=f"default {DISTILLED.steps} for distilled, {BASE.steps} for base")
    parser.add_argument("--sr-steps", type=int, default=SR_540P.steps, metavar="N",
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
    prompt = arguments.prompt if arguments.prompt_file is None else read_text(arguments.prompt_file, "prompt")
    negative = None if arguments.negative_file is None else read_text(arguments.negative_file, "negative prompt")

    import torch

    from ..pipeline.pipeline import MagiHumanPipeline

    dtype = DTYPES[arguments.dtype]
    pipeline = MagiHumanPipeline.from_folder(
        arguments.models, parts=dict(arguments.part), device=arguments.device,
        dtype=dtype and getattr(torch, dtype), resident_blocks=arguments.resident_blocks, tile=arguments.tile,
        loras=arguments.lora)
    options = ("image", "audio", "seconds", "width", "height", "seed", "steps", "mode", "upscale", "sr_steps")
    with bars() as progress:
        clip = pipeline.generate(prompt, negative=negative, progress=progress,
                                 **{name: getattr(arguments, name) for name in options})
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
        raise InputError(f"{file}: the {what} cannot be read ({error.strerror or error}). Check the name.") from None
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
    try:
        return (file, float(strength)) if colon else (text, 1.0)
    except ValueError:  # the colon belongs to the name, as in C:\\lora.safetensors
        return text, 1.0


def _part(text: str) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=FILE")
    return name, file
