"""The templates from a text, a picture or a voice to a clip."""

from .drawing import Drawing
from .files import DEMO
from .parts import IMAGE_NOTE, add_loaders, add_prompt, add_sampler

DEMO_PROMPT = """A happy woman with red curly hair, fair skin and glasses wears a blue shirt in front of a mint wall. \
The lips open and close with every syllable as she says calmly in a clear voice: "ma so mi". The camera is static, a \
close shot in soft light.

Dialogue:
<a woman with red hair, English>: "ma so mi"

Background Sound:
<No prominent background sound>"""


def make_clip(name: str, file: str, height: int, text: str, *, network: str = "distill", image: bool = False,
              voice: bool = False, upscaler: str | None = None, upright: bool = False) -> Drawing:
    """From a prompt to a film; with an image as first frame, a voice to follow, and super-resolution, or without.

    file: what its films are called. height, text: of the note. upright: higher than wide.
    """
    d = Drawing(name, text + IMAGE_NOTE if image else text, height)
    add_loaders(d, network, wan=image, upscaler=upscaler)
    if network == DEMO:
        d.group("Prompt").add("text", "MagiHumanTextEncode", tall=360, clip="clip", prompt=DEMO_PROMPT, negative="")
    else:
        add_prompt(d)
    if image:
        d.group("First frame").add("image", "LoadImage", image="picture.png")
    else:
        d.group("Clip")
    d.add("empty", "EmptyMagiHumanLatent",
          **({"width": 128, "height": 128, "seconds": 2.0} if network == DEMO else {"seconds": 5.0}),
          **({"width": 256, "height": 448} if upright else {}))
    latent = "empty"
    if image:
        d.add("start", "MagiHumanReferenceImage", vae="wan", image="image", latent=latent)
        latent = "start"
    if voice:
        d.group("Voice").add("voice", "LoadAudio", audio="voice.wav")
        d.add("driven", "MagiHumanDrivingAudio", audio_vae="audio_vae", audio="voice", latent=latent)
        latent = "driven"
    if image:
        d.group("Clip", below=voice)
    negative = {"negative": ("text", "negative")} if network == "base" else {}
    add_sampler(d, "sample", latent, seed=7 if network == DEMO else 1, **negative)
    latent = "sample"
    if upscaler:
        d.group("Super-resolution").add("large", "MagiHumanLatentUpscale", latent=latent, target=upscaler, vae="wan",
                                        image="image")
        add_sampler(d, "fine", "large", model="upscaler", seed=2)
        latent = "fine"
    d.group("Film").add("decode", "MagiHumanDecode", vae="turbo", audio_vae="audio_vae", latent=latent,
                        **({"audio": "voice"} if voice else {}))
    return d.add("save", "SaveVideo", video="decode", filename_prefix=f"video/magihuman_{file}")


def lip_sync(name: str, height: int, head: str, **more) -> Drawing:
    return make_clip(name, name, height, (
        f"{head}The recording is the clip's sound and sets its length; the lips follow it. In *MagiHuman Decode* it "
        "replaces the decoded sound, so the film has your recording itself.\n\n*Load Audio* names `voice.wav`: choose "
        "your own recording. **Put its words into the prompt**, in the body and in the dialogue.\n\n"),
        image=True, voice=True, **more)


def upscale(target: str, size: str, cost: str) -> Drawing:
    return make_clip(f"picture_to_clip_{target}", target, 640, (
        f"# Picture to clip in {target}\n\nFirst a clip of 448x256, then a second network enlarges it to {size} in "
        "5 steps. The sound stays as it "
        f"is.\n\n{cost} Only one of the two networks has to be in memory at a time.\n\n"), image=True, upscaler=target)


def draw() -> list[Drawing]:
    return [
        make_clip("text_to_clip", "text", 540, (
            "# Text to clip\n\nThe fast network (*distilled*) in 8 steps: a person speaks for 5 seconds, 448x256.\n\n"
            "The prompt wants three parts; *MagiHuman Prompt* puts them together. Write 150 to 200 words.\n\n")),
        make_clip("picture_to_clip", "picture", 580, (
            "# Picture to clip\n\nThe picture becomes the first frame and stays as it is.\n\n"), image=True),
        lip_sync("lip_sync", 620, "# Lip sync: picture and own voice, 448x256\n\n"),
        lip_sync("lip_sync_540p", 700, (
            "# Lip sync in 540p: picture and own voice\n\nFirst a clip of 448x256, then a second network enlarges it "
            "to 896x512 in 5 steps. "), upscaler="540p"),
        lip_sync("lip_sync_upright", 700, (
            "# Upright lip sync in 540p: picture and own voice\n\nFirst a clip of 256x448, then a second network "
            "enlarges it to 512x896 in 5 steps. Width and height stand in *Empty MagiHuman Latent*. "),
            upscaler="540p", upright=True),
        upscale("540p", "896x512", "This second pass takes about three times as long as the first."),
        upscale("1080p", "1920x1088",
                "It is for large cards, or patience: most of the time and memory goes into this step."),
        make_clip("base_full_cfg", "base", 560, (
            "# Base model with full guidance\n\nThe base network takes 32 steps. In each it runs twice: with the "
            "prompt, and with the negative prompt (an advanced input of *MagiHuman Text Encode*), from which it keeps "
            "away. That is about eight times the work of the fast network. *Guidance* says how far away: 5 for the "
            "sound, 5 and later 2 for the picture.\n\n"), network="base"),
        make_clip("demo", "demo", 260, (
            "# Demo\n\nPress **Run**: nothing to download, a CPU is enough. A small model that comes with the nodes "
            "draws cartoon people who say syllables of a made-up language: 2 seconds, 128x128.\n\nIt knows only the "
            "words of its card. Try: *man, child; black, brown, blond, red, grey hair; glasses; happy, calm, sad;* and "
            "two to six of *ma me mi mo mu sa se si so su*, in the body and in the dialogue.\n\nFor real clips, open "
            "*text_to_clip* from the same list of templates."), network=DEMO),
    ]
