"""Minutes from one picture and one recording."""

from .drawing import Drawing
from .parts import IMAGE_NOTE, add_loaders, add_prompt, add_sampler, add_windows


def draw() -> Drawing:
    d = Drawing("long_speech", (
        "# Long speech: minutes from one picture and one recording\n\n*MagiHuman Windows* makes the clip in "
        "overlapping "
        "windows that are blended in every step: the face, the voice and the lips hold, and memory is that of 5 "
        "seconds. "
        "*MagiHuman Decode to Video* decodes while *Save Video* writes.\n\n*Load Audio* names `voice.wav`: choose "
        "your own "
        "recording, of any length up to `max_seconds`. The prompt describes the person and the manner of speaking; it "
        "need not hold all of the words.\n\n" + IMAGE_NOTE), 520)
    add_loaders(d, "distill", wan=True)
    add_windows(d)
    add_prompt(d)
    d.group("First frame").add("image", "LoadImage", image="picture.png")
    d.add("empty", "EmptyMagiHumanLatent")
    d.add("start", "MagiHumanReferenceImage", vae="wan", image="image", latent="empty")
    d.group("Voice").add("voice", "LoadAudio", audio="voice.wav")
    d.add("driven", "MagiHumanDrivingAudio", audio_vae="audio_vae", audio="voice", latent="start", max_seconds=600.0)
    add_sampler(d.group("Clip", below=True), "sample", "driven", model="windows")
    d.group("Film").add("decode", "MagiHumanDecodeVideo", vae="turbo", audio_vae="audio_vae", latent="sample",
                        audio="voice")
    return d.add("save", "SaveVideo", video="decode", filename_prefix="video/magihuman_long")
