"""`magihuman decode`: a clip of latents that `generate --save-latents` kept."""

import argparse

from .options import add_models, add_output, inputs_of, make_pipeline, said_of
from .progress import overall


def add_decode(commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "decode", parents=[common], help="make a clip of saved latents",
        description="Decode what generate --save-latents kept: again, in smaller tiles, or on another device. The "
                    "clip's sound is that of the network, or the recording that drove it.")
    parser.set_defaults(run=decode)
    parser.add_argument("latents", metavar="LATENTS", help="the .safetensors file")
    add_output(parser)
    add_models(parser)


def decode(arguments: argparse.Namespace) -> int:
    """Decode latents and write the clip."""
    from ..media.mp4 import check_output

    out = check_output(arguments.out, inputs_of(arguments))
    pipeline = make_pipeline(arguments)
    with overall() as progress:
        clip = pipeline.decode(arguments.latents, progress=progress, lazy=True)
        clip.save(out)
        progress.said(said_of(out, clip))
    return 0
