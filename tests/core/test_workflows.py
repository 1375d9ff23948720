"""The example workflows, checked without a ComfyUI against a record of what ComfyUI 0.33 says of its nodes.

tests/comfyui/record_object_info.py refreshes the record; tests/comfyui holds it to a running server.
"""

import json
import re
import sys
from pathlib import Path, PurePosixPath

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "example_workflows"
sys.path.append(str(ROOT / "tests/comfyui"))

from draw_workflows import draw_all  # noqa: E402
from ui_graph import NOTES, inputs_of, sockets_of, widget_values  # noqa: E402

RECORD = json.loads((ROOT / "tests/data/comfyui/object_info.json").read_text(encoding="utf-8"))
NODES = RECORD["nodes"]
NAMES = ["base_full_cfg", "demo", "dub", "extend_clip", "keyframes_loop", "lip_sync", "lip_sync_540p",
         "lip_sync_upright", "long_speech", "picture_to_clip", "picture_to_clip_1080p", "picture_to_clip_540p",
         "retake", "seeds_batch", "text_to_clip", "voice_draft"]  # fmt: skip
MEDIA = {"LoadImage", "LoadAudio", "LoadVideo"}
MODEL_FOLDERS = {"diffusion_models", "text_encoders", "vae", "loras"}
DEMO = "built-in demo"


def load(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def test_files_are_as_they_are_drawn():
    drawn = {drawing.name: drawing.finished() for drawing in draw_all()}
    assert sorted(drawn) == NAMES
    for name, text in drawn.items():
        assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == text, "run tests/comfyui/draw_workflows.py"


@pytest.mark.parametrize("name", NAMES)
def test_a_window_of_1920_pixels_shows_the_note_and_all_groups(name):
    workflow = load(name)
    scale, (across, down) = workflow["extra"]["ds"]["scale"], workflow["extra"]["ds"]["offset"]
    boxes = [group["bounding"] for group in workflow["groups"]]
    boxes += [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    assert scale >= 0.6  # else a note is hard to read
    assert min(scale * (x + across) for x, _, _, _ in boxes) > 70  # the side bar
    assert max(scale * (x + across + width) for x, _, width, _ in boxes) < 1910
    assert min(scale * (y + down) for _, y, _, _ in boxes) > 90  # tabs and Run bar
    assert max(scale * (y + down + height) for _, y, _, height in boxes) < 1070


def problems(workflow: dict) -> list[str]:
    """Everything that is wrong with a workflow, in words."""
    found = [] if workflow["version"] == 0.4 else ["version is not 0.4"]
    nodes = {node["id"]: node for node in workflow["nodes"]}
    if len(nodes) < len(workflow["nodes"]) or workflow["last_node_id"] != max(nodes):
        found.append("node ids are not unique, or last_node_id is not the last")
    links = {link[0]: link for link in workflow["links"]}
    if len(links) < len(workflow["links"]) or workflow["last_link_id"] < max(links):
        found.append("link ids are not unique, or last_link_id is not the last")
    for node in nodes.values():
        if node["type"] in NOTES:
            continue
        if node["type"] not in NODES:
            found.append(f"{node['type']} is not a node")
            continue
        where = f"{node['type']} {node['id']}"
        found += [f"{where}: {text}" for text in (*_sockets(node, NODES[node["type"]], links),
                                                  *_values(node, NODES[node["type"]]))]
        if NODES[node["type"]].get("deprecated"):
            found.append(f"{where} is deprecated")
    for link in links.values():
        found += _link(link, nodes)
    return [*found, *_drawing(workflow)]


def _sockets(node: dict, info: dict, links: dict):
    entries = {entry["name"]: entry for entry in node["inputs"]}
    for name, (kind, required) in sockets_of(info, node).items():
        if name not in entries:
            yield f"input {name} is missing"
        elif entries[name]["type"] != kind:
            yield f"input {name} has type {entries[name]['type']}, expected {kind}"
        elif required and entries[name]["link"] not in links:
            yield f"input {name} is not connected"
    if [(o["name"], o["type"]) for o in node["outputs"]] != list(zip(info["output_name"], info["output"], strict=True)):
        yield "outputs differ"


def _values(node: dict, info: dict):
    values, rest = widget_values(info, node["widgets_values"])
    named = {name for name in values if not name.endswith(": control")}
    known = {entry["name"] for entry in node["inputs"] if "widget" in entry}
    expected = {name for name, (kind, *_) in inputs_of(info).items() if (kind in
                ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"))}
    if rest or not expected <= named:
        yield f"widgets are {sorted(named)}, left over {rest}"
    if known != named:
        yield f"inputs name the widgets {sorted(known)}, values are there for {sorted(named)}"
    for name, (value, kind, options) in values.items():
        if kind in ("INT", "FLOAT"):
            right = isinstance(value, int if kind == "INT" else (int, float)) and not isinstance(value, bool)
            if not right or not options.get("min", value) <= value <= options.get("max", value):
                yield f"{name} is {value!r}, out of range"
        elif kind == "STRING" and not isinstance(value, str):
            yield f"{name} is {value!r}, not text"
        elif kind in ("COMBO", "COMFY_DYNAMICCOMBO_V3"):
            offered = [option["key"] if isinstance(option, dict) else option for option in options["options"]]
            if value not in offered and not (options.get("files") and _file(value)):
                yield f"{name} is {value!r}, not offered"


def _file(value) -> bool:
    """Whether a value can be the name of a file or folder below one of ComfyUI's."""
    return (isinstance(value, str) and bool(re.fullmatch(r"[\w.\-/]+(/|\.\w+)", value)) and not value.startswith("/")
            and ".." not in PurePosixPath(value).parts)


def _link(link: list, nodes: dict):
    number, source, slot, target, place, kind = link
    try:
        output, entry = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
    except (KeyError, IndexError):
        return [f"link {number} ends nowhere"]
    found = []
    if number not in output["links"] or entry["link"] != number:
        found.append(f"link {number} is not what its nodes say")
    if not output["type"] == kind == entry["type"]:
        found.append(f"link {number} joins {output['type']} to {entry['type']}, as {kind}")
    return found


def _drawing(workflow: dict):
    boxes = [(n["id"], n["pos"][0], n["pos"][1] - 30, n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1])
             for n in workflow["nodes"]]
    for i, (a, left, top, right, bottom) in enumerate(boxes):
        for b, x0, y0, x1, y1 in boxes[i + 1 :]:
            if left < x1 and x0 < right and top < y1 and y0 < bottom:
                yield f"nodes {a} and {b} lie on one another"
    for node in workflow["nodes"]:
        groups = [g for g in workflow["groups"] if _inside(node, g["bounding"])]
        if len(groups) != (node["type"] not in NOTES) or not all(g["title"] for g in groups):
            yield f"node {node['id']} lies in {len(groups)} groups"


def _inside(node: dict, bounding: list) -> bool:
    (x, y), (w, h), (left, top, width, height) = node["pos"], node["size"], bounding
    return left <= x and top <= y - 30 and x + w <= left + width and y + h <= top + height


def test_all_are_there_each_with_a_picture():
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == NAMES
    for name in NAMES:
        path = FOLDER / f"{name}.jpg"
        with Image.open(path) as picture:
            assert picture.format == "JPEG" and picture.width >= 800 and picture.height >= 200, name
        assert path.stat().st_size <= 150_000, name


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wrong(name):
    assert problems(load(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_files_to_download_are_named_with_address_and_folder(name):
    workflow = load(name)
    (note,) = (node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    for node in workflow["nodes"]:
        values, _ = widget_values(NODES[node["type"]], node["widgets_values"]) if node["type"] in NODES else ({}, [])
        for value, kind, options in values.values():
            if kind != "COMBO" or not options.get("files") or value in options["options"]:
                continue
            if node["type"] in MEDIA:
                assert f"`{value}`" in note, f"the note does not speak of {value}"
                continue
            folder, _, file = value.rpartition("/")
            assert (f"{folder}/`" if folder else f"`{file}`") in note, f"the note does not say where {value} goes"
            if value.endswith("/"):  # the page lists no folders, and the note says so
                assert f"`{value}`" in note.split("Not in it:")[1]
            else:
                assert any(file["name"].startswith(value) for file in node["properties"]["models"]), value
        for file in node["properties"].get("models", ()):
            assert re.fullmatch(r"https://huggingface\.co/[\w.-]+/[\w.-]+/resolve/main/[\w./-]+", file["url"])
            assert PurePosixPath(file["url"]).name == PurePosixPath(file["name"]).name
            assert file["directory"] in MODEL_FOLDERS


def test_the_demo_downloads_nothing():
    workflow = load("demo")
    loaders = [node for node in workflow["nodes"] if node["type"].endswith("Loader")]
    assert len(loaders) == 4 and all(node["widgets_values"][0] == DEMO for node in loaders)
    assert not any(node["type"] in MEDIA or "models" in node["properties"] for node in workflow["nodes"])


def first(workflow: dict, kind: str) -> dict:
    return next(node for node in workflow["nodes"] if node["type"] == kind)


DAMAGE = {  # what is done to a workflow, given its sampler, empty latent and model loader as well
    "unknown node": lambda w, sampler, latent, loader: sampler.update(type="MagiHumanSamplerX"),
    "cut link": lambda w, *_: w["links"].pop(0),
    "wrong slot": lambda w, *_: w["links"][0].__setitem__(4, w["links"][0][4] + 1),
    "wrong type": lambda w, *_: w["links"][0].__setitem__(5, "IMAGE"),
    "control missing": lambda w, sampler, *_: sampler["widgets_values"].remove("randomize"),
    "unknown choice": lambda w, sampler, latent, loader: loader["widgets_values"].__setitem__(1, "teacher"),
    "out of range": lambda w, sampler, latent, loader: latent["widgets_values"].__setitem__(2, 36000),
    "path outside": lambda w, sampler, latent, loader: loader["widgets_values"].__setitem__(0, "../secret.safetensors"),
    "one value more": lambda w, sampler, latent, loader: latent["widgets_values"].append(1),
    "on one another": lambda w, sampler, latent, loader: latent.update(pos=list(sampler["pos"])),
    "input missing": lambda w, sampler, *_: sampler["inputs"].pop(1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found(damage):
    workflow = load("demo")
    kinds = ("MagiHumanSampler", "EmptyMagiHumanLatent", "MagiHumanModelLoader")
    DAMAGE[damage](workflow, *(first(workflow, kind) for kind in kinds))
    assert problems(workflow)
