"""Write example_workflows/*.json, from descriptions below and the recorded /object_info.

    python tests/comfyui/draw_workflows.py [SCREENSHOTS]

The files are plain workflows, free to be opened and saved in ComfyUI; this keeps the eight of them alike. Their
pictures are made of a folder of screenshots, which test_browser.py keeps where MAGIHUMAN_SCREENSHOTS says.
"""

import json
import sys
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
FOLDER = REPOSITORY / "example_workflows"
RECORD = REPOSITORY / "tests/data/comfyui/object_info.json"
sys.path.insert(0, str(HERE))

from ui_graph import AUTOGROW, EXTRA, WIDGETS, inputs_of  # noqa: E402

DEMO = "built-in demo"
HUB = "https://huggingface.co"
OFFICIAL = "GAIR/daVinci-MagiHuman"
REPACKAGED = "Comfy-Org/Wan_2.2_ComfyUI_Repackaged"
SHARDS = {"base": 7, "distill": 13, "540p_sr": 13, "1080p_sr": 13}
SIZES = {"base": "29 GiB", "distill": "57 GiB", "540p_sr": "57 GiB", "1080p_sr": "57 GiB"}
TURBO, WAN = "turbo_vae/checkpoint-340000.ckpt", "wan2.2_vae.safetensors"
SOUND, TEXT = "stable-audio-open-1.0/model.safetensors", "t5gemma-9b-9b-ul2/"
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
DEMO_PROMPT = """A happy woman with red curly hair, fair skin and glasses wears a blue shirt in front of a mint wall. \
The lips open and close with every syllable as she says calmly in a clear voice: "ma so mi". The camera is static, a \
close shot in soft light.

Dialogue:
<a woman with red hair, English>: "ma so mi"

Background Sound:
<No prominent background sound>"""
COLUMNS = (0, 420, 940, 1340, 1740, 2140)
GROUP_COLORS = ("#3f789e", "#a1309b", "#b58b2a", "#8A8", "#88A", "#3f789e")


def download(repository: str, path: str, name: str, directory: str) -> dict:
    return {"name": name, "url": f"{HUB}/{repository}/resolve/main/{path}", "directory": directory}


def network_files(network: str) -> list[dict]:
    count = SHARDS[network]
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    names.append("model.safetensors.index.json")
    return [download(OFFICIAL, f"{network}/{name}", f"magihuman/{network}/{name}", "diffusion_models")
            for name in names]


FILES = {
    **{f"magihuman/{network}/": network_files(network) for network in SHARDS},
    TURBO: [download(OFFICIAL, name, name, "vae") for name in (TURBO, "turbo_vae/TurboV3-Wan22-TinyShallow_7_7.json")],
    WAN: [download(REPACKAGED, f"split_files/vae/{WAN}", WAN, "vae")],
    SOUND: [download("stabilityai/stable-audio-open-1.0", "model.safetensors", SOUND, "vae")],
}


class Drawing:
    """A workflow in the making: nodes in columns, links by names."""

    def __init__(self, name: str):
        self.name, self.nodes, self.links, self.groups, self.by_key = name, [], [], [], {}
        self.known = json.loads(RECORD.read_text(encoding="utf-8"))["nodes"]
        self.bottom = dict.fromkeys(range(len(COLUMNS)), 0)

    def add(self, key: str, kind: str, column: int, *, title: str | None = None, broad: int = 340, tall: int = 0,
            **values):
        """A node below the last one of its column. values: widgets, or (key, output name) for links."""
        info = self.known[kind]
        fields = {}
        for name, (typ, options, required) in inputs_of(info).items():
            if typ == AUTOGROW:
                (item,) = options["template"]["input"]["required"].values()
                prefix = f"{name}.{options['template']['prefix']}"
                fields.update({entry: (item[0], {}, True) for entry in values if entry.startswith(prefix)})
            else:
                fields[name] = (typ, options, required)
        for unknown in set(values) - set(fields) - {"control"}:
            raise KeyError(f"{kind} has no input {unknown}")
        sockets = [(n, f) for n, f in fields.items() if f[0] not in WIDGETS]
        sockets.sort(key=lambda item: not item[1][2])
        widgets = [(n, f) for n, f in fields.items() if f[0] in WIDGETS]
        number = len(self.nodes) + 1
        entries, stored = [], []
        for name, (typ, _, required) in sockets:
            entries.append({"name": name, "type": typ, "link": None, **({} if required else {"shape": 7})})
        for name, (typ, options, _) in widgets:
            entries.append({"name": name, "type": typ, "widget": {"name": name}, "link": None})
            value = values.get(name)
            stored.append(_default(typ, options) if value is None or isinstance(value, tuple) else value)
            if typ == "COMFY_DYNAMICCOMBO_V3" and name == "format":
                entries.append({"name": "format.codec", "type": typ, "widget": {"name": "format.codec"}, "link": None})
                stored.append("auto")
            if options.get("control_after_generate"):
                stored.append(values.get("control", "randomize"))
            for option, count in EXTRA.items():
                if options.get(option):
                    stored.extend(["image"] if option != "audio_upload" else [None] * count)
        height = max(tall, 20 * max(len(sockets), len(info["output"])) + 24 * len(stored) + 14)
        node = {
            "id": number, "type": kind, "pos": [COLUMNS[column], self.bottom[column]], "size": [broad, height],
            "flags": {}, "order": number - 1, "mode": 0, "inputs": entries,
            "outputs": [{"name": name, "type": typ, "links": []}
                        for name, typ in zip(info["output_name"], info["output"], strict=True)],
            "properties": {"Node name for S&R": kind}, "widgets_values": stored,
        }
        if title:
            node["title"] = title
        if not kind.startswith(("MagiHuman", "EmptyMagiHuman")):
            node["properties"]["cnr_id"] = "comfy-core"
        models = [file for value in stored if isinstance(value, str) for file in FILES.get(value, ())]
        if models:
            node["properties"]["models"] = models
        self.bottom[column] += height + 80
        self.nodes.append(node)
        self.by_key[key] = node
        for name, value in values.items():
            if isinstance(value, tuple):
                self.link(*value, key, name)
        return self

    def link(self, source: str, output: str, target: str, name: str) -> None:
        origin, node = self.by_key[source], self.by_key[target]
        slot = next(i for i, entry in enumerate(origin["outputs"]) if entry["name"].lower() == output.lower())
        place = next(i for i, entry in enumerate(node["inputs"]) if entry["name"] == name)
        number = len(self.links) + 1
        self.links.append([number, origin["id"], slot, node["id"], place, origin["outputs"][slot]["type"]])
        origin["outputs"][slot]["links"].append(number)
        node["inputs"][place]["link"] = number

    def gap(self, column: int, height: int = 60) -> "Drawing":
        """Room for the next group's title."""
        self.bottom[column] += height
        return self

    def note(self, text: str, height: int, width: int = 640):
        number = len(self.nodes) + 1
        self.nodes.append({
            "id": number, "type": "MarkdownNote", "pos": [-width - 60, 0], "size": [width, height], "flags": {},
            "order": number - 1, "mode": 0, "inputs": [], "outputs": [], "title": "Read me", "properties": {},
            "widgets_values": [text], "color": "#432", "bgcolor": "#653",
        })
        return self

    def group(self, title: str, *keys: str):
        nodes = [self.by_key[key] for key in keys]
        left, top = (min(n["pos"][axis] for n in nodes) for axis in (0, 1))
        right, bottom = (max(n["pos"][axis] + n["size"][axis] for n in nodes) for axis in (0, 1))
        number = len(self.groups) + 1
        self.groups.append({
            "id": number, "title": title, "bounding": [left - 20, top - 80, right - left + 40, bottom - top + 100],
            "color": GROUP_COLORS[(number - 1) % len(GROUP_COLORS)], "font_size": 24, "flags": {},
        })
        return self

    def write(self) -> None:
        workflow = {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"magihuman/{self.name}")), "revision": 0,
            "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes,
            "links": self.links, "groups": self.groups, "config": {},
            "extra": {"ds": {"scale": 0.6, "offset": [640, 200]}}, "version": 0.4,
        }
        text = json.dumps(workflow, indent=1, ensure_ascii=False) + "\n"
        (FOLDER / f"{self.name}.json").write_text(text, encoding="utf-8")


def _default(kind: str, options: dict):
    if "default" in options:
        return options["default"]
    first = (options.get("options") or [""])[0]
    return first["key"] if isinstance(first, dict) else first if kind == "COMBO" or kind.startswith("COMFY") else ""


def files_text(network: str, *more: str, encoder: bool = False) -> str:
    """The note's list of files."""
    rows = [f"| `{n}/` (all files) | [{OFFICIAL}]({HUB}/{OFFICIAL}) | `diffusion_models/magihuman/{n}/` | {SIZES[n]} |"
            for n in (network, *more)]
    rows.append("| `turbo_vae/` (both files) | the same | `vae/turbo_vae/` | 1.7 GiB |")
    if encoder:
        rows.append(f"| `{WAN}` | [{REPACKAGED}]({HUB}/{REPACKAGED}) | `vae/` | 1.3 GiB |")
    rows.append("| `model.safetensors` | [stabilityai/stable-audio-open-1.0]"
                f"({HUB}/stabilityai/stable-audio-open-1.0) (gated) | `vae/stable-audio-open-1.0/` | 4.7 GiB |")
    rows.append("| all `*.safetensors`, `*.json` | [google/t5gemma-9b-9b-ul2]"
                f"({HUB}/google/t5gemma-9b-9b-ul2) (gated) | `text_encoders/t5gemma-9b-9b-ul2/` | 38 GiB |")
    head = ("## Files\n\nPut these below `ComfyUI/models`, then press R. *Gated*: accept the terms on the page "
            "first.\n\n")
    tail = ("\n\nFiles converted to bf16 or fp8 work as well, under any name: choose them in the loaders, and set "
            "*role* where the name does not say it.\n")
    return head + "| file | from | folder | size |\n|---|---|---|---|\n" + "\n".join(rows) + tail


def loaders(d: Drawing, network: str, *, encoder=False, upscaler=None, extend=False) -> Drawing:
    demo = network == DEMO
    d.add("model", "MagiHumanModelLoader", 0, model=DEMO if demo else f"magihuman/{network}/")
    keys = ["model"]
    if upscaler:
        d.add("upscaler", "MagiHumanModelLoader", 0, title=f"Load super-resolution model ({upscaler.split('_')[0]})",
              model=f"magihuman/{upscaler}/")
        keys.append("upscaler")
    d.add("clip", "MagiHumanTextEncoderLoader", 0, text_encoder=DEMO if demo else TEXT)
    d.add("turbo", "MagiHumanTurboVAELoader", 0, vae=DEMO if demo else TURBO)
    keys += ["clip", "turbo"]
    if encoder:
        d.add("wan", "MagiHumanVideoVAELoader", 0, vae=DEMO if demo else WAN)
        keys.append("wan")
    d.add("sound", "MagiHumanAudioVAELoader", 0, vae=DEMO if demo else SOUND)
    return d.group("1  Models", *keys, "sound")


def prompt(d: Drawing) -> Drawing:
    d.add("prompt", "MagiHumanPrompt", 1, broad=440, tall=520, body=BODY, dialogue=DIALOGUE)
    d.add("text", "MagiHumanTextEncode", 1, broad=440, tall=260, clip=("clip", "CLIP"), prompt=("prompt", "prompt"))
    return d.group("2  Prompt", "prompt", "text")


def sampler(d: Drawing, key: str, model: str, latent: str, column: int, *, negative=False, seed=1, **more) -> Drawing:
    links = {"negative": ("text", "negative")} if negative else {}
    return d.add(key, "MagiHumanSampler", column, broad=320, tall=420, model=(model, "MODEL"),
                 positive=("text", "positive"), latent_image=(latent, "LATENT"), seed=seed, **links, **more)


def film(d: Drawing, latent: str, column: int, name: str, number: int, *, audio=None) -> Drawing:
    more = {"audio": (audio, "AUDIO")} if audio else {}
    d.add("decode", "MagiHumanDecode", column, broad=320, vae=("turbo", "VAE"), audio_vae=("sound", "VAE"),
          latent=(latent, "LATENT"), **more)
    d.add("save", "SaveVideo", column, broad=320, tall=420, video=("decode", "VIDEO"),
          filename_prefix=f"video/magihuman_{name}")
    return d.group(f"{number}  Film", "decode", "save")


def picture(d: Drawing, column: int) -> Drawing:
    d.add("picture", "LoadImage", column, broad=320, tall=340, image="picture.png")
    d.add("empty", "EmptyMagiHumanLatent", column, broad=320, seconds=5.0)
    return d.add("held", "MagiHumanReferenceImage", column, broad=320, vae=("wan", "VAE"),
                 image=("picture", "IMAGE"), latent=("empty", "LATENT"))


PICTURE_HINT = ("*Load Image* names `picture.png`: choose your own picture with its button. Its middle is cropped to "
                "the clip's aspect, and the prompt must describe the person in it.\n\n")


def text_to_clip() -> Drawing:
    d = Drawing("text_to_clip").note(
        "# Text to clip\n\nThe distilled model, 8 steps without guidance: a person speaks for 5 seconds, 448x256.\n\n"
        "The prompt wants three parts; *MagiHuman Prompt* puts them together. Write 150 to 200 words.\n\n"
        + files_text("distill"), 440)
    loaders(d, "distill")
    prompt(d)
    d.add("empty", "EmptyMagiHumanLatent", 2, broad=320, seconds=5.0)
    sampler(d, "sample", "model", "empty", 2).group("3  Clip", "empty", "sample")
    return film(d, "sample", 3, "text", 4)


def picture_to_clip() -> Drawing:
    d = Drawing("picture_to_clip").note(
        "# Picture to clip\n\nThe picture becomes the first frame and stays as it is.\n\n" + PICTURE_HINT
        + files_text("distill", encoder=True), 480)
    loaders(d, "distill", encoder=True)
    prompt(d)
    picture(d, 2).group("3  First frame", "picture", "empty", "held")
    sampler(d, "sample", "model", "held", 3).group("4  Clip", "sample")
    return film(d, "sample", 4, "picture", 5)


def lip_sync() -> Drawing:
    d = Drawing("lip_sync").note(
        "# Lip sync: picture and own voice\n\nThe recording is the clip's sound and sets its length; the lips follow "
        "it. In *MagiHuman Decode* it replaces the decoded sound, so the film has your recording itself.\n\n"
        "*Load Audio* names `voice.wav`: choose your own recording. **Put its words into the prompt**, in the body and "
        "in the dialogue.\n\n" + PICTURE_HINT + files_text("distill", encoder=True), 540)
    loaders(d, "distill", encoder=True)
    prompt(d)
    picture(d, 2).group("3  First frame", "picture", "empty", "held")
    d.add("voice", "LoadAudio", 3, broad=320, tall=140, audio="voice.wav")
    d.add("driven", "MagiHumanDrivingAudio", 3, broad=320, audio_vae=("sound", "VAE"), audio=("voice", "AUDIO"),
          latent=("held", "LATENT"))
    d.group("4  Voice", "voice", "driven").gap(3)
    sampler(d, "sample", "model", "driven", 3).group("5  Clip", "sample")
    return film(d, "sample", 4, "lip_sync", 6, audio="voice")


def picture_upscaled(target: str, size: str, cost: str) -> Drawing:
    network = f"{target}_sr"
    d = Drawing(f"picture_to_clip_{target}").note(
        f"# Picture to clip in {target}\n\nFirst a clip of 448x256, then super-resolution to {size}: its latent is "
        "enlarged, covered with a little noise, and finished in 5 steps by a second network. The sound stays as it "
        "is.\n\n"
        f"{cost} Only one of the two networks has to be in memory at a time.\n\n" + PICTURE_HINT
        + files_text("distill", network, encoder=True), 540)
    loaders(d, "distill", encoder=True, upscaler=network)
    prompt(d)
    picture(d, 2).group("3  First frame", "picture", "empty", "held")
    sampler(d, "sample", "model", "held", 3).group("4  Clip", "sample")
    d.add("large", "MagiHumanLatentUpscale", 4, broad=320, latent=("sample", "LATENT"), target=target,
          vae=("wan", "VAE"), image=("picture", "IMAGE"))
    sampler(d, "fine", "upscaler", "large", 4, seed=2).group("5  Super-resolution", "large", "fine")
    return film(d, "fine", 5, target, 6)


def base_full_cfg() -> Drawing:
    d = Drawing("base_full_cfg").note(
        "# Base model with full guidance\n\nThe base model takes 32 steps with two evaluations each, about eight times "
        "the work of the distilled one. Guidance is 5 for sound, 5 and later 2 for the picture; the negative prompt "
        "(an advanced input of *MagiHuman Text Encode*) counts here.\n\n" + files_text("base"), 460)
    loaders(d, "base")
    prompt(d)
    d.add("empty", "EmptyMagiHumanLatent", 2, broad=320, seconds=5.0)
    sampler(d, "sample", "model", "empty", 2, negative=True).group("3  Clip", "empty", "sample")
    return film(d, "sample", 3, "base", 4)


def extend_clip() -> Drawing:
    d = Drawing("extend_clip").note(
        "# Extend a clip\n\nThe last second of a clip is held fixed, and 4 new seconds follow in the same voice and "
        "picture. The new part without that second is joined to the old clip.\n\n*Load Video* names `clip.mp4`: choose "
        "a clip of 25 frames per second, with sound, its width and height multiples of 32, such as one made here. "
        "Write a prompt for what is to follow. *Trim Audio Duration* starts where the overlap (1 second) ends: change "
        "both together.\n\n" + files_text("distill", encoder=True), 520)
    loaders(d, "distill", encoder=True)
    prompt(d)
    d.add("load", "LoadVideo", 2, broad=320, tall=660, title="Load the clip to extend", file="clip.mp4")
    d.add("old", "GetVideoComponents", 2, broad=320, video=("load", "VIDEO"))
    d.add("more", "MagiHumanExtend", 2, broad=320, vae=("wan", "VAE"), audio_vae=("sound", "VAE"),
          images=("old", "images"), audio=("old", "audio"))
    d.group("3  What is there", "load", "old", "more")
    sampler(d, "sample", "model", "more", 3)
    d.add("decode", "MagiHumanDecode", 3, broad=320, vae=("turbo", "VAE"), audio_vae=("sound", "VAE"),
          latent=("sample", "LATENT")).group("4  What follows", "sample", "decode")
    d.add("new", "ImageFromBatch", 4, broad=320, title="New frames, without the overlap", image=("decode", "images"),
          batch_index=("more", "overlap"), length=4096)
    d.add("frames", "BatchImagesNode", 4, broad=320, **{"images.image0": ("old", "images"),
                                                        "images.image1": ("new", "IMAGE")})
    d.add("new_sound", "TrimAudioDuration", 4, broad=320, title="New sound, without the overlap",
          audio=("decode", "AUDIO"), start_index=1.0, duration=3600.0)
    d.add("audio", "AudioConcat", 4, broad=320, audio1=("old", "audio"), audio2=("new_sound", "AUDIO"))
    d.group("5  Joined", "new", "frames", "new_sound", "audio")
    d.add("video", "CreateVideo", 5, broad=320, images=("frames", "IMAGE"), audio=("audio", "AUDIO"), fps=25.0)
    d.add("save", "SaveVideo", 5, broad=320, tall=420, video=("video", "VIDEO"),
          filename_prefix="video/magihuman_extended")
    return d.group("6  Film", "video", "save")


def demo() -> Drawing:
    d = Drawing("demo").note(
        "# Demo\n\nPress **Run**: nothing to download, a CPU is enough. A small model that comes with the nodes draws "
        "cartoon people who say syllables of a made-up language: 2 seconds, 128x128.\n\nIt knows only the words of its "
        "card. Try: *man, child; black, brown, blond, red, grey hair; glasses; happy, calm, sad;* and two to six of "
        "*ma me mi mo mu sa se si so su*, in the body and in the dialogue.\n\nFor real clips, open *text_to_clip* from "
        "the same list of templates.", 260)
    loaders(d, DEMO)
    d.add("text", "MagiHumanTextEncode", 1, broad=440, tall=420, clip=("clip", "CLIP"), prompt=DEMO_PROMPT)
    d.group("2  Prompt", "text")
    d.add("empty", "EmptyMagiHumanLatent", 2, broad=320, width=128, height=128, seconds=2.0)
    sampler(d, "sample", "model", "empty", 2, seed=7).group("3  Clip", "empty", "sample")
    return film(d, "sample", 3, "demo", 4)


def write_picture(source: Path, target: Path, most: int = 145_000, width: int = 1600) -> None:
    """A screenshot as JPEG, as good as the size allows."""
    from PIL import Image

    picture = Image.open(source).convert("RGB")
    picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    for quality in range(88, 30, -4):
        picture.save(target, quality=quality, optimize=True, progressive=True)
        if target.stat().st_size <= most:
            break


def main(screenshots: Path | None = None) -> None:
    FOLDER.mkdir(exist_ok=True)
    for drawing in (text_to_clip(), picture_to_clip(), lip_sync(),
                    picture_upscaled("540p", "896x512", "It takes about four times the clip's own time."),
                    picture_upscaled("1080p", "1920x1088", "It is for large cards, or patience: most of the time and "
                                                           "memory goes into this step."),
                    base_full_cfg(), extend_clip(), demo()):
        drawing.write()
        if screenshots:
            write_picture(screenshots / f"{drawing.name}.png", FOLDER / f"{drawing.name}.jpg")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
