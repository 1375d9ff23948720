"""A workflow in the making."""

import json
import uuid
from pathlib import Path

from ui_graph import EXTRA, WIDGETS, inputs_of, sockets_of

from .files import FILES, files_note

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDER = REPOSITORY / "example_workflows"
NODES = json.loads((REPOSITORY / "tests/data/comfyui/object_info.json").read_text(encoding="utf-8"))["nodes"]
# Of each column: where it begins, and how broad its nodes are.
COLUMNS = ((0, 340), (390, 440), (880, 320), (1250, 320), (1620, 320), (1990, 320))
GROUP_COLORS = ("#3f789e", "#a1309b", "#b58b2a", "#8A8", "#88A", "#3f789e", "#a1309b")
# Heights of nodes with a text, a picture or a player in them.
HEIGHTS = {"MagiHumanPrompt": 520, "MagiHumanTextEncode": 200, "MagiHumanSampler": 420, "SaveVideo": 420,
           "LoadImage": 340, "LoadAudio": 140, "LoadVideo": 660, "PreviewAudio": 160}
# By how much nodes are drawn taller: in newer ComfyUI, with a footer where a file is missing (Nodes 2.0), or with a
# warning once they ran.
GROWN = {"CreateVideo": 60, "MagiHumanTurboVAELoader": 30, "MagiHumanVideoVAELoader": 30, "MagiHumanAudioVAELoader": 30,
         "MagiHumanFitClip": 60, "MagiHumanJoin": 50, "MagiHumanSampler": 30, "MagiHumanLatentUpscale": 50}
NOTE_LEFT = -680
# The part of a window of 1920x1080 that side bar and Run bar leave, in pixels; and the largest zoom that a workflow
# which is small opens with.
WINDOW_LEFT, WINDOW_RIGHT, WINDOW_TOP, ZOOM = 82, 1900, 100, 0.8


class Drawing:
    """A workflow in the making: a note, then groups from left to right, with nodes below one another."""

    def __init__(self, name: str, text: str, height: int):
        """text, height: of the note, to which the list of files is added."""
        self.name, self.nodes, self.links, self.groups, self.by_key = name, [], [], [], {}
        self.column, self.bottom = -1, 0
        self.note = {
            "id": 1, "type": "MarkdownNote", "pos": [NOTE_LEFT, 0], "size": [630, height], "flags": {}, "order": 0,
            "mode": 0, "inputs": [], "outputs": [], "title": "Read me", "properties": {}, "widgets_values": [text],
            "color": "#222", "bgcolor": "#000",
        }
        self.nodes.append(self.note)

    def group(self, title: str, *, below: bool = False) -> "Drawing":
        """Begin a group, in the next column or below the last group; what is added then belongs to it."""
        if below:
            self.bottom += 80  # for its title
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

    def finished(self) -> str:
        """The text of the file. Call it once: it completes the note."""
        chosen = [value for node in self.nodes for value in node["widgets_values"]]
        if entries := [entry for name, (entry, _) in FILES.items() if name in chosen]:
            self.note["widgets_values"][0] += files_note(entries)
        boxes = [_box(i, *group) for i, group in enumerate(self.groups)]
        right = max(box["bounding"][0] + box["bounding"][2] for box in boxes)
        scale = round(min(ZOOM, (WINDOW_RIGHT - WINDOW_LEFT) / (right - NOTE_LEFT)), 2)
        offset = [round(WINDOW_LEFT / scale) - NOTE_LEFT, round(WINDOW_TOP / scale) - boxes[0]["bounding"][1]]
        workflow = {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"magihuman/{self.name}")), "revision": 0,
            "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes,
            "links": self.links, "groups": boxes, "config": {},
            "extra": {"ds": {"scale": scale, "offset": offset}}, "version": 0.4,
        }
        return json.dumps(workflow, indent=1, ensure_ascii=False) + "\n"


def _box(index: int, title: str, nodes: list[dict]) -> dict:
    """A group around its nodes."""
    left, top = (min(n["pos"][axis] for n in nodes) for axis in (0, 1))
    right, bottom = (max(n["pos"][axis] + n["size"][axis] for n in nodes) for axis in (0, 1))
    return {
        "id": index + 1, "title": f"{index + 1}  {title}",
        "bounding": [left - 20, top - 80, right - left + 40,
                     bottom - top + 120 + GROWN.get(nodes[-1]["type"], 0)],
        "color": GROUP_COLORS[index], "font_size": 24, "flags": {},
    }


def _default(options: dict):
    first = (options.get("options") or [""])[0]
    return options.get("default", first["key"] if isinstance(first, dict) else first)
