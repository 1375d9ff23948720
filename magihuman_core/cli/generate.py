"""`magihuman generate`: a clip with the models of a folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from .options import (
    PipelineFor,
    add_making,
    add_models,
    add_output,
    add_prompt,
    inputs_of,
    make_pipeline,
    making_options,
    read_prompt,
    said_of,
)
from .progress import Watch, overall

MAX_SEEDS = 1000


def add_generate(commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("generate", parents=[common], help="make a clip",
                                 description="Make a clip of a speaking person, as mp4.")
    parser.set_defaults(run=generate)
    add_prompt(parser, required=True)
    parser.add_argument("--image", metavar="FILE", help="picture of the person: the first frame")
    parser.add_argument("--keyframe", action="append", default=[], type=_keyframe, metavar="T=FILE",
                        help="picture that is seen at T seconds, or with last=FILE at the end; may be given several "
                        "times")
    parser.add_argument("--loop", action="store_true", help="end with the first picture, so that the clip can repeat")
    parser.add_argument("--audio", metavar="FILE", help="voice that drives the clip and is its sound, of any length")
    parser.add_argument("--from", dest="clip", metavar="CLIP", help="make another clip of an old one, with its sound")
    parser.add_argument("--denoise", type=float, default=1.0, metavar="D", help="with --from: how much changes, from "
                        "above 0 (nothing) to 1 (all but the sound)")
    parser.add_argument("--audio-only", action="store_true",
                        help="a draft of the voice, quickly: --out is a WAV file, without a picture")
    add_output(parser)
    parser.add_argument("--save-latents", metavar="FILE", help="keep the clip's latents, too, as .safetensors, before "
                        "it is decoded: magihuman decode makes a clip of them")
    parser.add_argument("--seconds", type=float, metavar="S",
                        help="length (default 4, or that of --audio, --script or --from)")
    seed = parser.add_mutually_exclusive_group()
    seed.add_argument("--seed", type=int, default=0, metavar="N", help="another seed gives another clip "
                      "(default %(default)s)")
    seed.add_argument("--seeds", type=_seeds, metavar="N,N,...",
                      help="a clip for each seed, such as 1,2,3 or 1-8; --out clip.mp4 becomes clip_1.mp4, ...")
    add_making(parser)
    add_models(parser)


def generate(arguments: argparse.Namespace, pipeline_for: PipelineFor = make_pipeline, watch: Watch = overall) -> int:
    """Make a clip, or one for each seed, and write it."""
    from ..media.mp4 import check_output

    # What is quickly checked comes first: nobody should wait minutes for a wrong file name.
    seeds = [arguments.seed] if arguments.seeds is None else arguments.seeds
    check_options(arguments)
    if arguments.audio_only:
        return _draft(arguments, seeds, pipeline_for, watch)
    outs = for_seeds(arguments.out, arguments.seeds)
    for out in outs:
        check_output(out, inputs_of(arguments))
    latents = None if arguments.save_latents is None else for_seeds(arguments.save_latents, arguments.seeds)
    options = making_options(arguments)
    options |= {name: getattr(arguments, name) for name in ("clip", "image", "audio", "seconds", "denoise", "loop")}
    options["keyframes"] = dict(arguments.keyframe)
    pipeline = pipeline_for(arguments)
    with watch() as progress:
        clips = pipeline.generate_seeds(read_prompt(arguments), seeds, progress=progress, lazy=True,
                                        save_latents=latents, **options)
        for out, clip in zip(outs, clips, strict=True):
            clip.save(out)
            progress.said(said_of(out, clip))
    return 0


def check_options(arguments: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together; no file is read for it."""
    for name in ("image", "keyframe", "loop", "audio", "clip", "upscale", "save_latents"):
        if arguments.audio_only and getattr(arguments, name):
            option = "from" if name == "clip" else name.replace("_", "-")
            raise InputError(f"--audio-only makes a voice from the prompt alone. Leave out --{option}.")
    if arguments.clip and (arguments.image or arguments.audio or arguments.keyframe or arguments.loop):
        raise InputError("--from keeps picture and sound of the old clip. Leave out --image, --audio, --keyframe and "
                         "--loop, or use magihuman dub.")
    if len(dict(arguments.keyframe)) < len(arguments.keyframe):
        raise InputError("Two of --keyframe are at the same time. Leave one of them out.")


def _draft(arguments: argparse.Namespace, seeds: list[int], pipeline_for: PipelineFor, watch: Watch) -> int:
    """Write the voice alone."""
    from ..media.audio_file import write_wav
    from ..media.mp4 import check_output

    outs = for_seeds(arguments.out, arguments.seeds)
    for out in outs:
        check_output(out, inputs_of(arguments), suffix=".wav", what="sound")
    options = making_options(arguments)
    for name in ("width", "height", "upscale", "sr_steps"):
        del options[name]
    pipeline, prompt = pipeline_for(arguments), read_prompt(arguments)
    with watch() as progress:
        for out, seed in zip(outs, seeds, strict=True):
            waveform, rate = pipeline.generate_audio(prompt, seconds=arguments.seconds, seed=seed,
                                                     progress=progress, **options)
            write_wav(out, waveform, rate)
            progress.said(f"{out}: {waveform.shape[1] / rate:.2f} s of sound")
    return 0


def for_seeds(name: str, seeds: Sequence[int] | None) -> list[Path]:
    """A file for each of --seeds; the name as it is where there are none."""
    path = Path(name)
    return [path] if seeds is None else [path.with_name(f"{path.stem}_{seed}{path.suffix}") for seed in seeds]


def _keyframe(text: str) -> tuple[float | str, str]:
    when, _, file = text.partition("=")
    seconds: float | str = when
    try:
        seconds = when if when == "last" else float(when)
    except ValueError:
        file = ""
    if not file:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form SECONDS=FILE or last=FILE")
    return seconds, file


def _seeds(text: str) -> list[int]:
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            numbers = range(int(first), int(last) + 1) if dash else [int(first)]
            seeds += numbers[: MAX_SEEDS + 1]
    except ValueError:
        seeds = []
    if not 0 < len(set(seeds)) == len(seeds) <= MAX_SEEDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different seeds such as 1,2,3 or 1-8")
    return seeds
