"""More of a clip."""

from .drawing import Drawing
from .parts import CLIP_NOTE, add_clip, add_loaders, add_prompt, add_sampler


def draw() -> Drawing:
    d = Drawing("extend_clip", (
        "# Extend a clip\n\nThe end of a clip is kept, and 4 new seconds follow in the same voice and picture. "
        "*MagiHuman Join* leaves that end out of the new part and joins the two, picture and sound together.\n\n"
        + CLIP_NOTE + "Write a prompt for what is to follow. For a recording that is to be spoken, connect *Load "
        "Audio* to "
        "`driving` of *MagiHuman Extend*, and its `AUDIO` to `audio` of *MagiHuman Decode*.\n\n"), 520)
    add_loaders(d, "distill", wan=True)
    add_prompt(d)
    add_clip(d, "What is there")
    d.add("more", "MagiHumanExtend", vae="wan", audio_vae="audio_vae", images="old", audio="old")
    add_sampler(d.group("What follows"), "sample", "more")
    d.add("decode", "MagiHumanDecode", vae="turbo", audio_vae="audio_vae", latent="sample")
    d.group("Film").add("join", "MagiHumanJoin", old_images="old", old_audio="old", images="decode", audio="decode",
                        overlap=("more", "overlap"))
    return d.add("save", "SaveVideo", video="join", filename_prefix="video/magihuman_extended")
