"""Write example_workflows/*.json, from descriptions below and the recorded /object_info.

    python tests/comfyui/draw_workflows.py [SCREENSHOTS]

The files are plain workflows, free to be opened and saved in ComfyUI; this keeps them alike. Their
pictures are made of a folder of screenshots, which test_browser.py keeps where MAGIHUMAN_SCREENSHOTS says.
"""

import json
import sys
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
FOLDER = REPOSITORY / "example_workflows"
NODES = json.loads((REPOSITORY / "tests/data/comfyui/object_info.json").read_text(encoding="utf-8"))["nodes"]
sys.path[:0] = [str(HERE), str(REPOSITORY)]

from magihuman_core.loading.downloads import EIGHT_BITS, download, total_gb  # noqa: E402
from ui_graph import EXTRA, WIDGETS, inputs_of, sockets_of  # noqa: E402

DEMO = "built-in demo"
NETWORKS = {"distill": "distilled", "base": "base", "540p_sr": "sr_540p", "1080p_sr": "sr_1080p"}
CHOSEN = {part: download(part, EIGHT_BITS) for part in (*NETWORKS.values(), "text_encoder", "turbo_vae", "video_vae",
                                                        "audio_vae")}
TURBO, WAN = CHOSEN["turbo_vae"].choice, CHOSEN["video_vae"].choice
AUDIO, TEXT = CHOSEN["audio_vae"].choice, CHOSEN["text_encoder"].choice
# a loader's choice: (what the note says of it, what ComfyUI's page offers to download)
FILES = {entry.choice: (entry, entry.files) for entry in CHOSEN.values()}
FILES_NOTE = """## Files: {total} GB in all

For cards of 12, 16, 24 GB and more: take these, leave *weight_dtype* at *default*. Put them below `ComfyUI/models`, \
then press R.

| take | from | folder | size |
|---|---|---|---|
{rows}

*Terms*: log in and accept the terms on that page first. *About*: counted, not read from the page.{unlisted} *MagiHuman \
Check* names all that is missing. With the original files (some 160 GB, see README) choose them in the loaders, and set \
*weight_dtype* to int8 on cards below 40 GB.
"""
UNLISTED = (" **ComfyUI's own list of missing models shows single files only. Not in it: {folders}**: fetch these yourself"
            "{text}.")


def row(entry) -> str:
    what = entry.what if entry.take else f"`{entry.what}`" if not entry.whole_folder else f"`{entry.path}`: all files"
    terms = " (terms)" if entry.gated else ""
    return f"| {what} | [{entry.repository}]({entry.address}){terms} | `{entry.folder}/` | {entry.size} |"


def files_note(entries) -> str:
    """What a note says of the files that a workflow needs."""
    folders = ", ".join(f"`{entry.choice}`" for entry in entries if not entry.files)
    text = ", and choose the text encoder's file in its loader" if CHOSEN["text_encoder"] in entries else ""
    return FILES_NOTE.format(total=total_gb(entries), rows="\n".join(map(row, entries)),
                             unlisted=UNLISTED.format(folders=folders, text=text) if folders else "")


IMAGE_NOTE = ("*Load Image* names `picture.png`: choose your own picture with its button. Its middle is cropped to "
              "the clip's aspect, and the prompt must describe the person in it.\n\n")
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
# Of each column: where it begins, and how broad its nodes are.
COLUMNS = ((0, 340), (420, 440), (940, 320), (1340, 320), (1740, 320), (2140, 320))
GROUP_COLORS = ("#3f789e", "#a1309b", "#b58b2a", "#8A8", "#88A", "#3f789e", "#a1309b")
# Heights of nodes with a text, a picture or a player in them.
HEIGHTS = {"MagiHumanPrompt": 520, "MagiHumanTextEncode": 260, "MagiHumanSampler": 420, "SaveVideo": 420,
           "LoadImage": 340, "LoadAudio": 140, "LoadVideo": 660}


GROWN = {"CreateVideo": 60}  # by how much newer versions of ComfyUI draw a node taller


class Drawing:
    """A workflow in the making: a note, then groups from left to right, with nodes below one another."""

    def __init__(self, name: str, text: str, height: int):
        """text, height: of the note, to which the list of files is added."""
        self.name, self.nodes, self.links, self.groups, self.by_key = name, [], [], [], {}
        self.column, self.bottom = -1, 0
        self.note = {
            "id": 1, "type": "MarkdownNote", "pos": [-700, 0], "size": [640, height], "flags": {}, "order": 0,
            "mode": 0, "inputs": [], "outputs": [], "title": "Read me", "properties": {}, "widgets_values": [text],
            "color": "#222", "bgcolor": "#000",
        }
        self.nodes.append(self.note)

    def group(self, title: str, *, below: bool = False) -> "Drawing":
        """Begin a group, in the next column or below the last group; what is added then belongs to it."""
        if below:
            self.bottom += 60  # for its title
        else:
            self.column, self.bottom = self.column + 1, 0
        self.groups.append((title, []))
        return self

    def add(self, key: str, kind: str, *, title: str | None = None, tall: int = 0, **values) -> "Drawing":
        """A node. values: of widgets; for links the key of a node, or (key, output) where its type does not tell."""
        info = NODES[kind]
        sockets = sockets_of(info, {"inputs": [{"name": name} for name in values]})
        widgets = {name: field for name, field in inputs_of(info).items() if field[0] in WIDGETS}
        if unknown := set(values) - set(sockets) - set(widgets):
            raise KeyError(f"{kind} has no input {unknown}")
        entries, stored = [], []
        for name, (typ, required) in sorted(sockets.items(), key=lambda item: not item[1][1]):
            optional = not required and "." not in name  # growing inputs are drawn alike
            entries.append({"name": name, "type": typ, "link": None, **({"shape": 7} if optional else {})})
        for name, (typ, options, _) in widgets.items():
            entries.append({"name": name, "type": typ, "widget": {"name": name}, "link": None})
            value = values.get(name)
            stored.append(_default(options) if value is None or isinstance(value, tuple) else value)
            if typ == "COMFY_DYNAMICCOMBO_V3" and name == "format":
                entries.append({"name": "format.codec", "type": typ, "widget": {"name": "format.codec"}, "link": None})
                stored.append("auto")
            if options.get("control_after_generate"):
                stored.append("randomize")
            for option, count in EXTRA.items():
                # Not behind a film: newer versions of Load Video have an editor in that place.
                if options.get(option) and option != "video_upload":
                    stored.extend(["image"] if option == "image_upload" else [None] * count)
        left, width = COLUMNS[self.column]
        least = 20 * max(len(sockets), len(info["output"])) + 24 * len(stored) + 14
        node = {
            "id": len(self.nodes) + 1, "type": kind, "pos": [left, self.bottom],
            "size": [width, max(tall or HEIGHTS.get(kind, 0), least)],
            "flags": {}, "order": len(self.nodes), "mode": 0, "inputs": entries,
            "outputs": [{"name": name, "type": typ, "links": []}
                        for name, typ in zip(info["output_name"], info["output"], strict=True)],
            "properties": {"Node name for S&R": kind}, "widgets_values": stored,
        }
        if title:
            node["title"] = title
        if not kind.startswith(("MagiHuman", "EmptyMagiHuman")):
            node["properties"]["cnr_id"] = "comfy-core"
        if models := [file for name, (_, files) in FILES.items() if name in stored for file in files]:
            node["properties"]["models"] = models
        self.bottom += node["size"][1] + 80 + GROWN.get(kind, 0)
        self.nodes.append(node)
        self.groups[-1][1].append(node)
        self.by_key[key] = node
        for name, value in values.items():
            if name in sockets or isinstance(value, tuple):
                self._link(value, node, name)
        return self

    def _link(self, source: str | tuple[str, str], node: dict, name: str) -> None:
        key, output = source if isinstance(source, tuple) else (source, None)
        place, entry = next((i, entry) for i, entry in enumerate(node["inputs"]) if entry["name"] == name)
        origin = self.by_key[key]
        slot, found = next((i, found) for i, found in enumerate(origin["outputs"])
                           if (found["name"] == output if output else found["type"] == entry["type"]))
        entry["link"] = len(self.links) + 1
        found["links"].append(entry["link"])
        self.links.append([entry["link"], origin["id"], slot, node["id"], place, found["type"]])

    def write(self) -> None:
        chosen = [value for node in self.nodes for value in node["widgets_values"]]
        if entries := [entry for name, (entry, _) in FILES.items() if name in chosen]:
            self.note["widgets_values"][0] += files_note(entries)
        workflow = {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"magihuman/{self.name}")), "revision": 0,
            "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes,
            "links": self.links, "groups": [_box(i, *group) for i, group in enumerate(self.groups)], "config": {},
            "extra": {"ds": {"scale": 0.55, "offset": [850, 220]}}, "version": 0.4,
        }
        text = json.dumps(workflow, indent=1, ensure_ascii=False) + "\n"
        (FOLDER / f"{self.name}.json").write_text(text, encoding="utf-8")


def _box(index: int, title: str, nodes: list[dict]) -> dict:
    """A group around its nodes."""
    left, top = (min(n["pos"][axis] for n in nodes) for axis in (0, 1))
    right, bottom = (max(n["pos"][axis] + n["size"][axis] for n in nodes) for axis in (0, 1))
    return {
        "id": index + 1, "title": f"{index + 1}  {title}",
        "bounding": [left - 20, top - 80, right - left + 40, bottom - top + 100],
        "color": GROUP_COLORS[index], "font_size": 24, "flags": {},
    }


def _default(options: dict):
    first = (options.get("options") or [""])[0]
    return options.get("default", first["key"] if isinstance(first, dict) else first)


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


def make_clip(name: str, file: str, height: int, text: str, *, network: str = "distill", image: bool = False,
              voice: bool = False, upscaler: str | None = None, upright: bool = False) -> Drawing:
    """From a prompt to a film; with an image as first frame, a voice to follow, and super-resolution, or without.

    upright: higher than wide.

    file: what its films are called. height, text: of the note.
    """
    d = Drawing(name, text + IMAGE_NOTE if image else text, height)
    add_loaders(d, network, wan=image, upscaler=upscaler)
    if network == DEMO:
        d.group("Prompt").add("text", "MagiHumanTextEncode", tall=420, clip="clip", prompt=DEMO_PROMPT, negative="")
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
        f"{head}The recording is the clip's sound and sets its length; the lips follow it. In *MagiHuman Decode* it replaces "
        "the decoded sound, so the film has your recording itself.\n\n*Load Audio* names `voice.wav`: choose your own "
        "recording. **Put its words into the prompt**, in the body and in the dialogue.\n\n"), image=True, voice=True, **more)


def upscale(target: str, size: str, cost: str) -> Drawing:
    return make_clip(f"picture_to_clip_{target}", target, 640, (
        f"# Picture to clip in {target}\n\nFirst a clip of 448x256, then super-resolution to {size}: its latent is "
        "enlarged, covered with a little noise, and finished in 5 steps by a second network. The sound stays as it "
        f"is.\n\n{cost} Only one of the two networks has to be in memory at a time.\n\n"), image=True, upscaler=target)


def extend_clip() -> Drawing:
    d = Drawing("extend_clip", (
        "# Extend a clip\n\nThe last second of a clip is held fixed, and 4 new seconds follow in the same voice and "
        "picture. The new part without that second is joined to the old clip.\n\n*Load Video* names `clip.mp4`: choose "
        "a clip of 25 frames per second, with sound, its width and height multiples of 32, such as one made here. "
        "Write a prompt for what is to follow. *Trim Audio Duration* starts where the overlap (1 second) ends: change "
        "both together.\n\n"), 520)
    add_loaders(d, "distill", wan=True)
    add_prompt(d)
    d.group("What is there").add("load", "LoadVideo", title="Load the clip to extend", file="clip.mp4")
    d.add("old", "GetVideoComponents", video="load")
    d.add("more", "MagiHumanExtend", vae="wan", audio_vae="audio_vae", images="old", audio="old")
    add_sampler(d.group("What follows"), "sample", "more")
    d.add("decode", "MagiHumanDecode", vae="turbo", audio_vae="audio_vae", latent="sample")
    d.group("Joined").add("new", "ImageFromBatch", title="New frames, without the overlap", image="decode",
                          batch_index=("more", "overlap"), length=4096)
    d.add("frames", "BatchImagesNode", **{"images.image0": "old", "images.image1": "new"})
    d.add("new_audio", "TrimAudioDuration", title="New sound, without the overlap", audio="decode", start_index=1.0,
          duration=3600.0)
    d.add("audio", "AudioConcat", audio1="old", audio2="new_audio")
    d.group("Film").add("video", "CreateVideo", images="frames", audio="audio", fps=25.0)
    return d.add("save", "SaveVideo", video="video", filename_prefix="video/magihuman_extended")


def draw_all() -> list[Drawing]:
    return [
        make_clip("text_to_clip", "text", 540, (
            "# Text to clip\n\nThe distilled model, 8 steps without guidance: a person speaks for 5 seconds, "
            "448x256.\n\n"
            "The prompt wants three parts; *MagiHuman Prompt* puts them together. Write 150 to 200 words.\n\n")),
        make_clip("picture_to_clip", "picture", 580, (
            "# Picture to clip\n\nThe picture becomes the first frame and stays as it is.\n\n"), image=True),
        lip_sync("lip_sync", 620, "# Lip sync: picture and own voice, 448x256\n\n"),
        lip_sync("lip_sync_540p", 700, (
            "# Lip sync in 540p: picture and own voice\n\nFirst a clip of 448x256, then a second network enlarges it to "
            "896x512 in 5 steps. "), upscaler="540p"),
        lip_sync("lip_sync_upright", 700, (
            "# Upright lip sync in 540p: picture and own voice\n\nFirst a clip of 256x448, then a second network enlarges it "
            "to 512x896 in 5 steps. Width and height stand in *Empty MagiHuman Latent*. "), upscaler="540p", upright=True),
        upscale("540p", "896x512", "This second pass takes about three times as long as the first."),
        upscale("1080p", "1920x1088",
                "It is for large cards, or patience: most of the time and memory goes into this step."),
        make_clip("base_full_cfg", "base", 560, (
            "# Base model with full guidance\n\nThe base model takes 32 steps with two evaluations each, about eight "
            "times the work of the distilled one. Guidance is 5 for sound, 5 and later 2 for the picture; the negative "
            "prompt (an advanced input of *MagiHuman Text Encode*) counts here.\n\n"), network="base"),
        extend_clip(),
        make_clip("demo", "demo", 260, (
            "# Demo\n\nPress **Run**: nothing to download, a CPU is enough. A small model that comes with the nodes "
            "draws cartoon people who say syllables of a made-up language: 2 seconds, 128x128.\n\nIt knows only the "
            "words of its card. Try: *man, child; black, brown, blond, red, grey hair; glasses; happy, calm, sad;* and "
            "two to six of *ma me mi mo mu sa se si so su*, in the body and in the dialogue.\n\nFor real clips, open "
            "*text_to_clip* from the same list of templates."), network=DEMO),
    ]


def write_jpeg(source: Path, target: Path, most: int = 145_000, width: int = 1600) -> None:
    """A screenshot as JPEG, as good as the size allows."""
    from PIL import Image

    image = Image.open(source).convert("RGB")
    image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    for quality in range(88, 30, -4):
        image.save(target, quality=quality, optimize=True, progressive=True)
        if target.stat().st_size <= most:
            break


def main(screenshots: Path | None = None) -> None:
    for drawing in draw_all():
        drawing.write()
        if screenshots:
            write_jpeg(screenshots / f"{drawing.name}.png", FOLDER / f"{drawing.name}.jpg")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
