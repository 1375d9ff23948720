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

from ui_graph import EXTRA, WIDGETS, inputs_of, sockets_of  # noqa: E402

from magihuman_core.loading.downloads import EIGHT_BITS, download, total_gb  # noqa: E402

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

{rows}

*Terms*: log in and accept the terms on that page first. *About*: counted, not read from the page.{unlisted} \
*MagiHuman Check* names all that is missing. With the original files (some 160 GB, see README) choose them in the \
loaders, and set *weight_dtype* to int8 on cards below 40 GB.
"""
UNLISTED = (" **ComfyUI's own list of missing models shows single files only. Not in it: {folders}**: fetch these "
            "yourself{text}.")


def row(entry) -> str:
    what = entry.what if entry.take else f"`{entry.what}`" if not entry.whole_folder else f"`{entry.path}`: all files"
    terms = " (terms)" if entry.gated else ""
    return f"- {what}, {entry.size}, from [{entry.repository}]({entry.address}){terms} into `{entry.folder}/`"


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
COLUMNS = ((0, 340), (390, 440), (880, 320), (1250, 320), (1620, 320), (1990, 320))
GROUP_COLORS = ("#3f789e", "#a1309b", "#b58b2a", "#8A8", "#88A", "#3f789e", "#a1309b")
# Heights of nodes with a text, a picture or a player in them.
HEIGHTS = {"MagiHumanPrompt": 520, "MagiHumanTextEncode": 260, "MagiHumanSampler": 420, "SaveVideo": 420,
           "LoadImage": 340, "LoadAudio": 140, "LoadVideo": 660,
           "PreviewAudio": 160}


GROWN = {"CreateVideo": 60}  # by how much newer versions of ComfyUI draw a node taller


class Drawing:
    """A workflow in the making: a note, then groups from left to right, with nodes below one another."""

    def __init__(self, name: str, text: str, height: int):
        """text, height: of the note, to which the list of files is added."""
        self.name, self.nodes, self.links, self.groups, self.by_key = name, [], [], [], {}
        self.column, self.bottom = -1, 0
        self.note = {
            "id": 1, "type": "MarkdownNote", "pos": [-680, 0], "size": [630, height], "flags": {}, "order": 0,
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
            "extra": {"ds": {"scale": 0.6, "offset": [815, 200]}}, "version": 0.4,
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
        f"{head}The recording is the clip's sound and sets its length; the lips follow it. In *MagiHuman Decode* it "
        "replaces the decoded sound, so the film has your recording itself.\n\n*Load Audio* names `voice.wav`: choose "
        "your own recording. **Put its words into the prompt**, in the body and in the dialogue.\n\n"),
        image=True, voice=True, **more)


def upscale(target: str, size: str, cost: str) -> Drawing:
    return make_clip(f"picture_to_clip_{target}", target, 640, (
        f"# Picture to clip in {target}\n\nFirst a clip of 448x256, then super-resolution to {size}: its latent is "
        "enlarged, covered with a little noise, and finished in 5 steps by a second network. The sound stays as it "
        f"is.\n\n{cost} Only one of the two networks has to be in memory at a time.\n\n"), image=True, upscaler=target)


CLIP_NOTE = ("*Load Video* names `clip.mp4`: choose your own film, of any rate and size. *MagiHuman Fit Clip* brings "
"it to "
             "25 frames per second and multiples of 32 pixels, at most about 448x256.\n\n")


def add_clip(d: Drawing, title: str) -> None:
    """A film as a clip: nodes "load" and "old"."""
    d.group(title).add("load", "LoadVideo", title="Load the clip", file="clip.mp4")
    d.add("old", "MagiHumanFitClip", video="load")


def add_windows(d: Drawing) -> None:
    d.add("windows", "MagiHumanWindows", model="model")


def extend_clip() -> Drawing:
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


def long_speech() -> Drawing:
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


def add_paste(d: Drawing, sound: str) -> None:
    """Decode what was sampled, paste it over the old frames, and save the film. sound: what is heard where it is "
    "held."""
    d.group("Film").add("decode", "MagiHumanDecode", vae="turbo", audio_vae="audio_vae", latent="sample", audio=sound)
    d.add("paste", "ImageCompositeMasked", title="New over old, within the mask", destination="old", source="decode",
          mask="part")
    d.add("video", "CreateVideo", images="paste", audio="decode", fps=25.0)


def dub() -> Drawing:
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


def retake() -> Drawing:
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


def keyframes_loop() -> Drawing:
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


def seeds_batch() -> Drawing:
    d = Drawing("seeds_batch", (
        "# Four seeds, four clips\n\n`batch_size` of *Empty MagiHuman Latent* (an advanced input) says how many "
        "clips are made, "
        "one after another, from the seed, the seed + 1 and so on. *MagiHuman Decode* gives a list, and *Save Video* "
        "saves "
        "each. To make one of them again, set its seed and a batch of 1.\n\n"), 440)
    add_loaders(d, "distill", wan=False)
    add_prompt(d)
    d.group("Clips").add("empty", "EmptyMagiHumanLatent", seconds=4.0, batch_size=4)
    add_sampler(d, "sample", "empty")
    d.group("Films").add("decode", "MagiHumanDecode", vae="turbo", audio_vae="audio_vae", latent="sample")
    return d.add("save", "SaveVideo", video="decode", filename_prefix="video/magihuman_seed")


def voice_draft() -> Drawing:
    d = Drawing("voice_draft", (
        "# Voice draft\n\nThe voice alone, in a few seconds: three takes of one line. When you like one, save it "
        "from its "
        "player, open *lip_sync*, and load it there: the clip then speaks with exactly this voice.\n\n"), 400)
    d.group("Models").add("model", "MagiHumanModelLoader", model=CHOSEN["distilled"].choice)
    d.add("clip", "MagiHumanTextEncoderLoader", text_encoder=TEXT)
    d.add("audio_vae", "MagiHumanAudioVAELoader", vae=AUDIO)
    add_prompt(d)
    d.group("Voice").add("voice", "MagiHumanVoiceDraft", model="model", positive=("text", "positive"),
                         audio_vae="audio_vae", seconds=5.0, seed=1, takes=3)
    return d.add("preview", "PreviewAudio", audio="voice")


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
            "# Base model with full guidance\n\nThe base model takes 32 steps with two evaluations each, about eight "
            "times the work of the distilled one. Guidance is 5 for sound, 5 and later 2 for the picture; the negative "
            "prompt (an advanced input of *MagiHuman Text Encode*) counts here.\n\n"), network="base"),
        extend_clip(),
        long_speech(),
        dub(),
        retake(),
        keyframes_loop(),
        seeds_batch(),
        voice_draft(),
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
