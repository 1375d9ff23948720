"""Record what a ComfyUI says of the nodes that the example workflows use, for the tests without a ComfyUI.

    COMFYUI_PATH=~/comfy/ComfyUI python tests/comfyui/record_object_info.py

It starts the server that the tests start, and writes tests/data/comfyui/object_info.json.
"""

import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
RECORD = REPOSITORY / "tests/data/comfyui/object_info.json"
PREFIX = ("MagiHuman", "EmptyMagiHuman")
FIELDS = ("input", "input_order", "output", "output_name", "output_node", "deprecated", "display_name")
# What a node offers depends on the files of the machine: only what every machine has is kept.
BUILT_IN = ("built-in demo", "beside the weights")
FILE_INPUTS = {"model", "text_encoder", "tokenizer", "vae", "image", "audio", "file"}

sys.path[:0] = [str(HERE), str(REPOSITORY)]

from base import make_base  # noqa: E402
from server import Server, find_comfyui, find_python  # noqa: E402


def slim(info: dict) -> dict:
    """One node without texts, and without the names of this machine's files."""
    kept = {field: info[field] for field in FIELDS if field in info}
    kept["input"] = json.loads(json.dumps(info["input"]), object_hook=_without_texts)
    for inputs in kept["input"].values():
        for name, (kind, *rest) in inputs.items():
            if name in FILE_INPUTS and (isinstance(kind, list) or kind == "COMBO"):
                options = rest[0] if rest else {}
                names = kind if isinstance(kind, list) else options.get("options", [])
                options["options"] = [choice for choice in names if choice in BUILT_IN]
                inputs[name] = ["COMBO", {**options, "files": True}]
    return kept


def _without_texts(options: dict) -> dict:
    return {key: value for key, value in options.items() if key not in ("tooltip", "display_name")}


def main() -> None:
    comfyui = find_comfyui()
    if comfyui is None:
        sys.exit("NO COMFYUI FOUND. Set COMFYUI_PATH to a checkout.")
    with (tempfile.TemporaryDirectory() as base,
          Server(find_python(comfyui), comfyui, make_base(Path(base) / "base")) as server):
        known = server.get("/object_info")
        version = server.get("/system_stats")["system"]["comfyui_version"]
    workflows = [json.loads(path.read_text(encoding="utf-8")) for path in REPOSITORY.glob("example_workflows/*.json")]
    wanted = {node["type"] for workflow in workflows for node in workflow["nodes"]}
    nodes = {name: slim(info) for name, info in sorted(known.items()) if name.startswith(PREFIX) or name in wanted}
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(info)}" for name, info in nodes.items())
    RECORD.write_text(f'{{"comfyui": {json.dumps(version)}, "nodes": {{\n{lines}\n}}}}\n', encoding="utf-8")
    print(f"{RECORD}: {len(nodes)} nodes of ComfyUI {version}")


if __name__ == "__main__":
    main()
