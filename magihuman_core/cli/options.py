"""What all commands that make a clip take, and the pipeline that comes of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..recipes import BASE, DEMO_SIDE, DISTILLED, SR_540P

if TYPE_CHECKING:
    from ..pipeline.clip import Clip
    from ..pipeline.pipeline import MagiHumanPipeline

PipelineFor = Callable[[argparse.Namespace], "MagiHumanPipeline"]

MAX_TEXT_FILE = 1 << 20  # bytes; a prompt has about a thousand
DTYPES = {"auto": None, "bf16": "bfloat16", "fp32": "float32", "fp8": "float8_e4m3fn", "int8": "int8"}
FUSE = {"auto": None, "on": True, "off": False}
# Options that name a file to read; also the pictures of --keyframe, and the weights of --part and --lora.
INPUTS = ("clip", "latents", "image", "audio", "mask", "script", "prompt_file", "negative_file")
SHARED = ("width", "height", "steps", "mode", "upscale", "sr_steps", "window", "overlap",
          "anchor")


def add_prompt(parser: argparse.ArgumentParser, *, required: bool, script: bool = True) -> None:
    prompt = parser.add_mutually_exclusive_group(required=required)
    default = "" if required else " (default: the clip's own, where it carries one)"
    prompt.add_argument("--prompt", metavar="TEXT", help="what is seen and heard" + default)
    prompt.add_argument("--prompt-file", metavar="FILE", help="the same, from a UTF-8 text file")
    if script:
        prompt.add_argument("--script", metavar="FILE", help="a prompt for each part of the clip: lines of seconds and "
                            'prompt, or of JSON, {"seconds": 4, "prompt": "..."}')


def add_output(parser: argparse.ArgumentParser, default: str = "clip.mp4") -> None:
    parser.add_argument("--out", metavar="FILE", default=default,
                        help="the mp4 to write (default %(default)s); an existing one is replaced")


def add_making(parser: argparse.ArgumentParser, *, size: str | None = None) -> None:
    """Options of how a clip is made. size: what width and height are by default, instead of the model's own."""
    usual = {side: f"{getattr(BASE, side)}, or with a picture by its shape; of the demo {DEMO_SIDE}"
             for side in ("width", "height")}
    for side in ("width", "height"):
        parser.add_argument(f"--{side}", type=int, metavar="N",
                            help=f"pixels (default {size or usual[side]})")
    parser.add_argument("--upscale", type=_target, metavar="SIZE", help="second pass at 540p, 1080p or WIDTHxHEIGHT")
    parser.add_argument("--mode", choices=("distilled", "base"),
                        help="which network, where the folder has both (default distilled)")
    parser.add_argument("--steps", type=int, metavar="N",
                        help=f"default {DISTILLED.steps} for distilled, {BASE.steps} for base")
    parser.add_argument("--sr-steps", type=int, default=SR_540P.steps, metavar="N",
                        help="steps of the second pass (default %(default)s)")
    parser.add_argument("--negative-file", metavar="FILE", help="text of what to avoid, for mode base")
    parser.add_argument("--window", type=float, metavar="S", help="seconds made in one piece; a longer clip is made in "
                        f"windows (default what the network was trained on, {BASE.window:g} of the released one)")
    parser.add_argument("--overlap", type=float, metavar="S", help="seconds that windows share (default 0.8)")
    parser.add_argument("--no-anchor", dest="anchor", action="store_false",
                        help="windows do not see the last picture given before them: for clips whose scene changes")


def add_models(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Options of which models are used, and how they are run."""
    parser.add_argument("--models", required=required, metavar="FOLDER", help="folder of models, such as "
                        "ComfyUI/models; or: demo")
    parser.add_argument("--part", action="append", default=[], type=_part, metavar="NAME=FILE",
                        help="take a part of the model from elsewhere, as in audio_vae=/data/sd.safetensors")
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, mps, xpu, ... (auto: "
                        "CUDA, else what else PyTorch finds, else the CPU; others than NVIDIA cards are not tried)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto",
                        help="what weights of network and text encoder are kept in (auto: bf16, or the 8 bits they are "
                        "stored in; fp32 for small models on a CPU); fp8 and int8 take half of bf16's memory")
    parser.add_argument("--lora", action="append", default=[], type=_lora, metavar="FILE[:STRENGTH]",
                        help="change the base or distilled network by a LoRA; may be given several times")
    parser.add_argument("--resident-blocks", type=int, metavar="N",
                        help="keep only N of the network's blocks on the device and bring in the others when needed, "
                        "which is slower (default: as many as fit)")
    parser.add_argument("--stream-from", choices=("memory", "file"),
                        help="where blocks that do not stay come from: main memory, which is fast, or the file "
                        "(default: memory, where they fit there)")
    parser.add_argument("--fuse", choices=tuple(FUSE), default="auto",
                        help="compile norms, activations and gates into single kernels: faster, after some seconds for "
                        "the first step (auto: on NVIDIA cards with Triton)")
    parser.add_argument("--tile", type=int, metavar="N",
                        help="decode the picture in squares of N x 16 pixels (default: whole frames, or the largest "
                        "squares that fit)")


def model_options() -> dict[str, Any]:
    """The options of `add_models`, with their defaults."""
    parser = argparse.ArgumentParser()
    add_models(parser, required=False)
    return vars(parser.parse_args([]))


def make_pipeline(arguments: argparse.Namespace, **options: Any) -> MagiHumanPipeline:
    """options: of MagiHumanPipeline, besides those that the arguments give."""
    import torch

    from ..pipeline.pipeline import MagiHumanPipeline

    dtype = DTYPES[arguments.dtype]
    return MagiHumanPipeline.from_folder(
        arguments.models, parts=dict(arguments.part), device=arguments.device, dtype=dtype and getattr(torch, dtype),
        resident_blocks=arguments.resident_blocks, stream_from=arguments.stream_from, fuse=FUSE[arguments.fuse],
        tile=arguments.tile, loras=arguments.lora, crew=getattr(arguments, "crew", None), **options)


def making_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_making`, as the pipeline takes them."""
    negative = None if arguments.negative_file is None else read_text(arguments.negative_file, "negative prompt")
    return {"negative": negative, **{name: getattr(arguments, name) for name in SHARED}}


def read_prompt(arguments: argparse.Namespace):
    """The prompt, or the parts of a script; None where neither is given. Raises InputError."""
    if getattr(arguments, "script", None) is not None:
        from ..text.script import parse_script

        return parse_script(read_text(arguments.script, "script"), arguments.script)
    return arguments.prompt if arguments.prompt_file is None else read_text(arguments.prompt_file, "prompt")


def inputs_of(arguments: argparse.Namespace) -> list[str | Path]:
    """All files that a command reads, whatever it is: none of them may be written over."""
    files: list[str | Path] = []

    def note(file: str) -> str:
        files.append(file)
        return file

    change_inputs(arguments, note)
    return files


def change_inputs(arguments: argparse.Namespace, change: Callable[[str], Any]) -> dict[str, Any]:
    """The options that name files which a command reads, with each file replaced by what becomes of it."""
    changed: dict[str, Any] = {name: change(value) for name in INPUTS
                               if (value := getattr(arguments, name, None)) is not None}
    if "keyframe" in arguments:
        changed["keyframe"] = [(when, change(file)) for when, file in arguments.keyframe]
    changed["part"] = [(part, change(file)) for part, file in arguments.part]
    changed["lora"] = [(change(file), strength) for file, strength in arguments.lora]
    return changed


def said_of(out: Path, clip: Clip) -> str:
    """The answer once a clip is written."""
    video = clip.video
    return f"{out}: {clip.seconds:.2f} s, {video.width}x{video.height}, {video.count} frames with sound"


def read_text(path: str, what: str) -> str:
    """A small UTF-8 text file, without the white space around. Raises InputError."""
    return read_whole(path, what, MAX_TEXT_FILE).strip()


def read_whole(path: str, what: str, limit: int) -> str:
    """A UTF-8 text file of so many bytes at most, as it is. Raises InputError, also for an empty one."""
    file = Path(path)
    try:
        if file.exists() and not file.is_file() and not file.is_dir():
            raise InputError(f"{file}: is a device or a pipe, expected a text file. Save the {what} in a file.")
        if file.stat().st_size > limit:
            raise InputError(f"{file}: is too large for a {what}. Give a text file.")
        with file.open("rb") as opened:
            text = opened.read(limit).decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{file}: the {what} cannot be read ({error.strerror or error}). Check the name.") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: the {what} is not UTF-8 text. Save it as UTF-8.") from None
    except InputError:
        raise
    except ValueError:  # a zero byte
        raise InputError(f"{path!r}: is not a possible name of a {what} file. Check the name.") from None
    if not text.strip():
        raise InputError(f"{file}: the {what} is empty. Write something into it.")
    return text


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
