"""What several templates have in common."""

from .drawing import Drawing
from .files import AUDIO, CHOSEN, DEMO, NETWORKS, TEXT, TURBO, WAN

IMAGE_NOTE = ("*Load Image* names `picture.png`: choose your own picture with its button. Its middle is cropped to "
              "the clip's shape, and the prompt must describe the person in it.\n\n")
BODY = (
    "A young woman with short dark hair and a green wool coat sits at a wooden table in a bright kitchen, calm, "
    "awake and friendly, and speaks straight to the viewer. At first she looks down at a cup between her hands, her "
    "lips closed and her brow relaxed. Then she lifts her head, her eyes meet the camera, her eyebrows rise a little "
    "and the corners of her mouth turn up. Her lips part and she says in a warm, lively voice, at an easy pace and a "
    'middle pitch: "Good morning, and welcome! Today I will show you something new." Her jaw and lips follow every '
    "word clearly; she blinks once after the first sentence, and on the last word she tilts her head slightly to the "
    "left. Then her lips close, she nods once, and the smile stays. Her shoulders and hands remain still. The camera "
    "is static at the height of her eyes, a medium close-up; soft daylight falls from a window on the left, and the "
    "kitchen behind her is slightly out of focus."
)
DIALOGUE = ("young woman in a green coat, English: Good morning, and welcome! Today I will show you something new.")
CLIP_NOTE = ("*Load Video* names `clip.mp4`: choose your own film, of any rate and size. *MagiHuman Fit Clip* brings "
             "it to 25 frames per second and multiples of 32 pixels, at most about 448x256.\n\n")


def add_loaders(d: Drawing, network: str, *, wan: bool, upscaler: str | None = None) -> None:
    demo = network == DEMO
    d.group("Models").add("model", "MagiHumanModelLoader", model=DEMO if demo else CHOSEN[NETWORKS[network]].choice)
    if upscaler:
        d.add("upscaler", "MagiHumanModelLoader", title=f"Load super-resolution model ({upscaler})",
              model=CHOSEN[NETWORKS[f"{upscaler}_sr"]].choice)
    d.add("clip", "MagiHumanTextEncoderLoader", text_encoder=DEMO if demo else TEXT)
    d.add("turbo", "MagiHumanTurboVAELoader", vae=DEMO if demo else TURBO)
    if wan:
        d.add("wan", "MagiHumanVideoVAELoader", vae=WAN)
    d.add("audio_vae", "MagiHumanAudioVAELoader", vae=DEMO if demo else AUDIO)


def add_prompt(d: Drawing) -> None:
    d.group("Prompt").add("prompt", "MagiHumanPrompt", body=BODY, dialogue=DIALOGUE)
    d.add("text", "MagiHumanTextEncode", clip="clip", prompt=("prompt", "prompt"))


def add_sampler(d: Drawing, key: str, latent: str, *, model: str = "model", seed: int = 1, **more) -> None:
    d.add(key, "MagiHumanSampler", model=model, positive=("text", "positive"), latent_image=latent, seed=seed, **more)


def add_clip(d: Drawing, title: str) -> None:
    """A film as a clip: nodes "load" and "old"."""
    d.group(title).add("load", "LoadVideo", title="Load the clip", file="clip.mp4")
    d.add("old", "MagiHumanFitClip", video="load")


def add_windows(d: Drawing) -> None:
    d.add("windows", "MagiHumanWindows", model="model")


def add_paste(d: Drawing, sound: str) -> None:
    """Decode what was sampled, paste it over the old frames, and save the film.

    sound: what is heard where it is held.
    """
    d.group("Film").add("decode", "MagiHumanDecode", vae="turbo", audio_vae="audio_vae", latent="sample", audio=sound)
    d.add("paste", "ImageCompositeMasked", title="New over old, within the mask", destination="old", source="decode",
          mask="part")
    d.add("video", "CreateVideo", images="paste", audio="decode", fps=25.0)
