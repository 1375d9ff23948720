"""A moment of a clip performed again."""

from .drawing import Drawing
from .parts import CLIP_NOTE, add_clip, add_loaders, add_paste, add_prompt, add_sampler, add_windows


def draw() -> Drawing:
    d = Drawing("retake", (
        "# Retake: a moment performed again\n\nPicture and sound from `start` to `end` are made anew, in one with "
        "what is "
        "before and after; the rest of the clip stays.\n\n" + CLIP_NOTE + "Set `start` and `end` of *MagiHuman "
        "Regenerate* in "
        "seconds. A second or less works best: another expression, a clearer word. Other words are not sure to be "
        "said. "
        "Try some seeds. `part` makes only the picture or only the sound.\n\n"), 540)
    add_loaders(d, "distill", wan=True)
    add_windows(d)
    add_prompt(d)
    add_clip(d, "Clip")
    d.group("Moment").add("clip_latent", "MagiHumanEncodeClip", vae="wan", audio_vae="audio_vae", images="old",
                          audio="old")
    d.add("part", "MagiHumanRegenerate", latent="clip_latent", start=0.48, end=0.96)
    add_sampler(d.group("Made anew", below=True), "sample", "part", model="windows")
    add_paste(d, "old")
    return d.add("save", "SaveVideo", video="video", filename_prefix="video/magihuman_retake")
