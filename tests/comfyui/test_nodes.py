"""The pack in a real server: what the nodes say of themselves, ways through core's nodes, and the server's buttons."""

import json
from pathlib import Path

import av
import graphs
import pytest
from graphs import node
from PIL import Image
from record_object_info import PREFIX, RECORD
from server import Server, find_python
from ui_graph import WIDGETS, inputs_of

IDS = [name for name in json.loads(RECORD.read_text(encoding="utf-8"))["nodes"] if name.startswith(PREFIX)]
ENGLISH = Path(__file__).resolve().parents[2] / "locales/en/nodeDefs.json"
CORE_TYPES = {
    "MODEL", "CLIP", "VAE", "CONDITIONING", "LATENT", "IMAGE", "MASK", "AUDIO", "VIDEO", "STRING", "INT", "FLOAT",
    "BOOLEAN",
    "SIGMAS", "GUIDER", "SAMPLER", "COMBO",
}  # fmt: skip


def test_the_pack_is_loaded(server):
    assert not [line for line in server.log.splitlines() if "magihuman" in line and "FAILED" in line]


@pytest.mark.parametrize("name", IDS)
def test_sockets_are_core_types_and_every_widget_has_a_tooltip(server, name):
    info = server.get(f"/object_info/{name}")[name]
    assert info["category"].startswith("MagiHuman") and info["description"] and info["search_aliases"]
    assert set(info["output"]) <= CORE_TYPES
    for key, (kind, options, _) in inputs_of(info).items():
        assert kind in CORE_TYPES, key
        assert kind not in WIDGETS or options.get("tooltip"), key


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


def video_facts(result) -> tuple:
    """(width, height, frames, seconds of audio) of the mp4 that the node "video" wrote."""
    (path,) = result.files("video")
    with av.open(str(path)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        return video.width, video.height, video.frames, round(float(audio.duration * audio.time_base), 2)


def test_core_sampler_decoders_and_av_nodes(server):
    graph = graphs.with_frames(graphs.clip()) | {
        "sample": graphs.core_sampler(),
        "apart": node("LTXVSeparateAVLatent", av_latent=["sample", 0]),
        "together": node("LTXVConcatAVLatent", video_latent=["apart", 0], audio_latent=["apart", 1]),
        "images": node("VAEDecodeTiled", samples=["together", 0], vae=["wan_vae", 0], tile_size=64, overlap=16,
                       temporal_size=64, temporal_overlap=8),
        "decoded": node("VAEDecode", samples=["together", 0], vae=["turbo_vae", 0]),
        "audio": node("VAEDecodeAudio", samples=["together", 0], vae=["audio_vae", 0]),
        "joined": node("CreateVideo", images=["decoded", 0], audio=["audio", 0], fps=25.0, bit_depth=8),
        "video": graphs.save_video(["joined", 0]),
    }
    result = server.run(graph)
    assert video_facts(result)[:3] == (64, 96, 9)
    assert len(result.files("frames")) == 9


def test_cores_step_cache_applies(server):
    graph = graphs.with_video(graphs.clip(model=["cached", 0], seed=41, steps=4))
    graph["cached"] = node("EasyCache", model=["model", 0], reuse_threshold=0.2, start_percent=0.15, end_percent=0.95,
                           verbose=True)
    assert video_facts(server.run(graph)) == (64, 96, 9, 0.36)


def test_a_cancelled_run_leaves_the_server_well(server):
    long = graphs.with_frames(graphs.clip("base", seconds=8.0, steps=200, seed=11))
    # Any count: on a fast machine the bar does not show each of them.
    assert server.run(long, cancel_when=r" [1-9]\d*/200 ").end == "execution_interrupted"
    assert video_facts(server.run(graphs.with_video(graphs.clip(seed=12))))[2] == 9


def test_models_unload_by_comfyuis_button_and_come_back_the_same(server):
    runs = []
    for _ in range(2):
        files = server.run(graphs.with_frames(graphs.clip(seed=51))).files("frames")
        runs.append([Image.open(path).tobytes() for path in files])
        server.post("/free", {"unload_models": True, "free_memory": True})  # results are forgotten, too
    assert len(runs[0]) == 9
    assert runs[0] == runs[1]


def test_another_way_to_start(server, comfyui):
    flags = ("--disable-dynamic-vram", "--cache-none", "--use-pytorch-cross-attention", "--fp16-text-enc")
    with Server(find_python(comfyui), comfyui, server.base, *flags) as other:
        assert video_facts(other.run(graphs.with_video(graphs.clip())))[2] == 9


def test_the_check_says_what_is_there_and_what_is_missing(server):
    graph = {"check": node("MagiHumanCheck", start="picture and voice", size="1080p", upright=False, base=False)}
    (text,) = server.run(graph).outputs["check"]["text"]
    assert "1080p super-resolution network" in text.split("There:")[1] and "Missing" not in text
    assert str(server.base / "models") in text and "Set:" in text
    assert server.run(graph).outputs["check"]["text"] == [text], "it runs each time"
