"""Pictures at chosen times."""

from .drawing import Drawing
from .parts import IMAGE_NOTE, add_loaders, add_prompt, add_sampler


def draw() -> Drawing:
    d = Drawing("keyframes_loop", (
        "# Keyframes and loop\n\nThe picture is the first and the last frame, so that the clip loops. *at* of "
        "*MagiHuman "
        "Keyframe* chooses the place: the first frame, the last, both, or a second. For several pictures, put one of "
        "these "
        "nodes behind another.\n\n" + IMAGE_NOTE), 440)
    add_loaders(d, "distill", wan=True)
    add_prompt(d)
    d.group("Pictures").add("image", "LoadImage", image="picture.png")
    d.add("empty", "EmptyMagiHumanLatent", seconds=4.0)
    d.add("start", "MagiHumanKeyframe", vae="wan", image="image", latent="empty", at="first and last")
    add_sampler(d.group("Clip"), "sample", "start")
    d.group("Film").add("decode", "MagiHumanDecode", vae="turbo", audio_vae="audio_vae", latent="sample")
    return d.add("save", "SaveVideo", video="decode", filename_prefix="video/magihuman_loop")
