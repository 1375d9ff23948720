"""The pack in a real server: every node is there, and clips come out."""

import json
from pathlib import Path

import graphs
import pytest
from graphs import node
from PIL import Image
from record_object_info import PREFIX, RECORD
from server import Server, find_python
from ui_graph import inputs_of

IDS = [name for name in json.loads(RECORD.read_text(encoding="utf-8"))["nodes"] if name.startswith(PREFIX)]
ENGLISH = Path(__file__).resolve().parents[2] / "locales/en/nodeDefs.json"
CORE_TYPES = {
    "MODEL", "CLIP", "VAE", "CONDITIONING", "LATENT", "IMAGE", "AUDIO", "VIDEO", "STRING", "INT", "FLOAT", "BOOLEAN",
    "SIGMAS", "GUIDER", "SAMPLER", "COMBO",
}  # fmt: skip


def test_every_node_is_there(server):
    known = server.get("/object_info")
    assert [name for name in IDS if name not in known] == []
    assert not [line for line in server.log.splitlines() if "magihuman" in line and "FAILED" in line]


def test_sockets_are_core_types_and_every_input_has_a_tooltip(server):
    for name in IDS:
        info = server.get(f"/object_info/{name}")[name]
        assert info["category"].startswith("MagiHuman") and info["description"] and info["search_aliases"]
        assert set(info["output"]) <= CORE_TYPES, name
        for inputs in info["input"].values():
            for key, (kind, *options) in inputs.items():
                kind = "COMBO" if isinstance(kind, list) else kind
                assert kind in CORE_TYPES, (name, key, kind)
                if kind in ("INT", "FLOAT", "STRING", "COMBO", "BOOLEAN"):
                    assert options and options[0].get("tooltip"), (name, key)


@pytest.mark.parametrize("name", IDS)
def test_the_english_locale_is_what_the_node_says(server, name):
    """The front end prefers it to the node's own texts. When this fails, the translations want a look as well."""
    info = server.get(f"/object_info/{name}")[name]
    inputs = {key: texts(options.get("display_name") or key, options.get("tooltip"))
              for key, (_, options, _) in inputs_of(info).items()}
    # The front end translates an output without a name of its own by its type.
    outputs = {str(index): found for index, (own, kind, tooltip) in
               enumerate(zip(info["output_name"], info["output"], info["output_tooltips"], strict=True))
               if (found := texts(own if own != kind else None, tooltip))}
    wanted = {"display_name": info["display_name"], "description": info["description"], "inputs": inputs}
    assert json.loads(ENGLISH.read_text(encoding="utf-8"))[name] == wanted | ({"outputs": outputs} if outputs else {})


def texts(name: str | None, tooltip: str | None) -> dict[str, str]:
    return {key: text for key, text in (("name", name), ("tooltip", tooltip)) if text}


def test_models_unload_by_comfyuis_button_and_come_back_the_same(server):
    graph = graphs.clip(seed=51)
    graph["images"] = node("VAEDecode", samples=["sample", 0], vae=["turbo", 0])
    graph["save"] = node("PreviewImage", images=["images", 0])
    runs = []
    for _ in range(2):
        runs.append([Image.open(path).tobytes() for path in server.run(graph).files("save")])
        server.post("/free", {"unload_models": True, "free_memory": True})  # results are forgotten, too
    assert len(runs[0]) == 9
    assert runs[0] == runs[1]


def test_another_way_to_start(server, comfyui):
    flags = ("--disable-dynamic-vram", "--cache-none", "--use-pytorch-cross-attention", "--fp16-text-enc")
    other = Server(find_python(comfyui), comfyui, server.base, *flags)
    try:
        other.wait()
        (film,) = other.run(graphs.film(graphs.clip())).files("save")
        assert film.stat().st_size > 1000
    finally:
        other.stop()
