"""New words for a clip."""

from .drawing import Drawing
from .parts import CLIP_NOTE, add_clip, add_loaders, add_paste, add_prompt, add_sampler, add_windows


def draw() -> Drawing:
    d = Drawing("dub", (
        "# Dub: new words for an old clip\n\nThe mouth follows a new recording; everything else of the picture "
        "stays, and "
        "is pasted back outside of the mask.\n\n" + CLIP_NOTE + "*Load Audio* names `voice.wav`, the new recording: "
        "it is cut "
        "to the clip, or followed by silence. Lay the ellipse of *MagiHuman Mouth Mask* over the mouth and chin; for "
        "any "
        "other shape paint a mask, and connect it to `mask`. The prompt describes the person and what is said "
        "now.\n\n"),
        560)
    add_loaders(d, "distill", wan=True)
    add_windows(d)
    add_prompt(d)
    add_clip(d, "Old clip")
    d.add("mouth", "MagiHumanMouthMask", images="old")
    d.group("New voice").add("voice", "LoadAudio", audio="voice.wav")
    d.add("clip_latent", "MagiHumanEncodeClip", vae="wan", audio_vae="audio_vae", images="old", audio="voice")
    d.add("part", "MagiHumanRegenerate", latent="clip_latent", part="picture", mask="mouth")
    add_sampler(d.group("Clip", below=True), "sample", "part", model="windows")
    add_paste(d, "voice")
    return d.add("save", "SaveVideo", video="video", filename_prefix="video/magihuman_dub")
