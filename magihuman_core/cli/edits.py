"""`magihuman dub`, `retake` and `extend`: clips made of clips."""

import argparse
from pathlib import Path

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


def add_dub(commands, common: argparse.ArgumentParser) -> None:
    parser = _add(commands, common, "dub", "give a clip new words",
                  "Make the picture of a clip follow another recording, which becomes its sound. What the mask leaves "
                  "out stays as it was.")
    parser.add_argument("--audio", required=True, metavar="FILE", help="the new voice")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--mask", metavar="FILE", help="picture that is white where the clip is made anew "
                       "(default: everywhere, but for the first frame)")
    where.add_argument("--mouth", type=_ellipse, metavar="X,Y,W,H", help="instead of a mask an ellipse: its centre, "
                       "width and height, in fractions of the picture, such as 0.5,0.65,0.4,0.3")
    parser.add_argument("--edge", type=int, metavar="N", help="pixels over which the new picture fades into the old "
                        "one, within the mask (default a 32nd of its shorter side)")


def add_retake(commands, common: argparse.ArgumentParser) -> None:
    parser = _add(commands, common, "retake", "perform a moment of a clip again",
                  "Make a moment of a clip anew, as if it were performed again; the rest stays as it was.")
    parser.add_argument("--start", required=True, type=float, metavar="S", help="where it begins, in seconds")
    parser.add_argument("--end", required=True, type=float, metavar="S", help="where it ends, in seconds")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--audio-only", action="store_true", help="keep the picture, which drives the new sound")
    only.add_argument("--video-only", action="store_true", help="keep the sound, which drives the new picture")


def add_extend(commands, common: argparse.ArgumentParser) -> None:
    parser = _add(commands, common, "extend", "continue a clip",
                  "Continue a clip in the same voice, or with a recording, and join the two.")
    parser.add_argument("--audio", metavar="FILE", help="voice that is heard from the clip's end on, and drives")
    parser.add_argument("--seconds", type=float, metavar="S", help="how much is added (default 4, or all of --audio)")


def _add(commands, common: argparse.ArgumentParser, name: str, short: str, long: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, parents=[common], help=short, description=long)
    parser.set_defaults(run=edit, method=name)
    parser.add_argument("clip", metavar="CLIP", help="a video of any kind: it is read at 25 frames per second")
    add_prompt(parser, required=False, script=False)
    add_output(parser, f"{name}.mp4")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed gives another clip "
                        "(default %(default)s)")
    add_making(parser, size="the clip's, up to the model's own area")
    add_models(parser)
    return parser


OWN = {"dub": ("audio", "edge"), "retake": ("start", "end", "audio_only", "video_only"), "extend": ("audio", "seconds")}


def edit(arguments: argparse.Namespace, pipeline_for: PipelineFor = make_pipeline, watch: Watch = overall) -> int:
    """Make the new clip and write it."""
    from ..media.mp4 import check_output

    out = check_output(arguments.out, inputs_of(arguments))
    options = making_options(arguments) | {name: getattr(arguments, name) for name in OWN[arguments.method]}
    if arguments.method == "dub":
        options["mask"] = arguments.mouth if arguments.mask is None else arguments.mask
    pipeline = pipeline_for(arguments)
    with watch() as progress:
        clip = getattr(pipeline, arguments.method)(arguments.clip, prompt=read_prompt(arguments), seed=arguments.seed,
                                                   progress=progress, lazy=True, **options)
        clip.save(out)
        progress.said(said_of(Path(out), clip))
    return 0


def _ellipse(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form X,Y,W,H, four fractions of the picture")
    return values


