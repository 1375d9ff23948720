"""`magihuman demo`: a clip from the built-in small model, with nothing to download."""

import argparse
from contextlib import suppress
from pathlib import Path

from ..atomic import whole_file
from ..errors import InputError
from ..recipes import DEMO_LARGE, DEMO_SECONDS, DEMO_SIDE
from .console import plain
from .progress import overall

SOFTWARE = "magihuman demo, contact sheet"  # what a contact sheet says of itself

PROMPT = """\
A happy woman with red curly hair, fair skin and glasses wears a blue shirt in front of a mint wall. The lips open and \
close with every syllable as she says calmly in a clear voice: "ma so mi". The camera is static, a close shot in soft \
light.

Dialogue:
<a woman with red hair, English>: "ma so mi"

Background Sound:
<No prominent background sound>"""


def add_demo(commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "demo", parents=[common], help="make a clip with the built-in small model",
        description="Make a 2-second clip with the built-in small model: a cartoon person who speaks a made-up "
        "language. It needs no download; magihuman_core/demo/CARD.md says what it knows.")
    parser.set_defaults(run=demo)
    parser.add_argument("--prompt", metavar="TEXT", default=PROMPT, help="what is seen and heard (default: an example)")
    parser.add_argument("--image", metavar="FILE", help="picture of the person: the first frame")
    parser.add_argument("--audio", metavar="FILE", help="voice that drives the clip and is its sound")
    parser.add_argument("--mode", choices=("distilled", "base"), default="distilled", help="default %(default)s")
    parser.add_argument("--no-upscale", action="store_true",
                        help=f"stay at {DEMO_SIDE}x{DEMO_SIDE}, without super-resolution")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="default %(default)s, which is quick enough; "
                        "or cuda, ...")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed gives another clip")
    parser.add_argument("--out", metavar="FILE", default="magihuman_demo.mp4",
                        help="the mp4 to write (default %(default)s); a contact sheet goes beside it, as .png")


def demo(arguments: argparse.Namespace) -> int:
    """Make the clip and a contact sheet of it."""
    from ..media.mp4 import check_output
    from ..pipeline.pipeline import MagiHumanPipeline

    inputs = [arguments.image, arguments.audio]
    out = check_output(arguments.out, inputs)
    sheet = check_output(out.with_suffix(".png"), inputs, suffix=".png", what="contact sheet")
    check_sheet(sheet)
    with overall() as progress:
        clip = MagiHumanPipeline.from_folder("demo", device=arguments.device).generate(
            arguments.prompt, image=arguments.image, audio=arguments.audio, mode=arguments.mode, seed=arguments.seed,
            seconds=DEMO_SECONDS, width=DEMO_SIDE, height=DEMO_SIDE, progress=progress,
            upscale=None if arguments.no_upscale else (DEMO_LARGE, DEMO_LARGE))
    clip.save(out)
    save_sheet(clip.frames, sheet)
    print(plain(f"{out}: {clip.seconds:.2f} s with sound; {sheet}: its frames"))
    return 0


def check_sheet(path: Path) -> None:
    """Raise InputError where an image would be replaced that is no contact sheet: nobody asked for that."""
    from PIL import Image

    if not path.exists():
        return
    with suppress(Exception), Image.open(path) as image:  # Pillow raises many kinds
        if image.info.get("Software") == SOFTWARE:
            return
    raise InputError(f"{path}: is there already, and is no contact sheet, which goes there. Give another --out.")


def save_sheet(frames, path: Path) -> None:
    """Write the contact sheet of some frames, whole or not at all. Raises InputError."""
    from PIL.PngImagePlugin import PngInfo

    note = PngInfo()
    note.add_text("Software", SOFTWARE)
    try:
        with whole_file(path) as file:
            contact_sheet(frames).save(file, "PNG", pnginfo=note)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}). Choose another folder.") from None


def contact_sheet(frames, columns: int = 6, rows: int = 2):
    """Evenly spaced frames of a uint8 tensor [F, h, w, 3] in a grid, row by row, as a PIL image."""
    import numpy as np
    from PIL import Image

    chosen = frames[np.linspace(0, len(frames) - 1, columns * rows).round().astype(int)].numpy()
    grid = chosen.reshape(rows, columns, *chosen.shape[1:])  # [rows, columns, h, w, 3]
    return Image.fromarray(np.concatenate(np.concatenate(grid, axis=1), axis=1))
