"""The pack in a real server: every node is there, and clips come out."""

import av
import graphs
import pytest
from server import Server, find_python

IDS = [
    "MagiHumanModelLoader", "MagiHumanTextEncoderLoader", "MagiHumanVideoVAELoader", "MagiHumanTurboVAELoader",
    "MagiHumanAudioVAELoader", "MagiHumanPrompt", "MagiHumanTextEncode", "EmptyMagiHumanLatent",
    "MagiHumanReferenceImage", "MagiHumanDrivingAudio", "MagiHumanExtend", "MagiHumanSampler", "MagiHumanScheduler",
    "MagiHumanGuider", "MagiHumanSamplerSelect", "MagiHumanLatentUpscale", "MagiHumanDecode",
]  # fmt: skip
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


@pytest.mark.parametrize("role", ["distilled", "base"])
def test_text_to_film(server, role):
    result = server.run(graphs.film(graphs.clip(role)))
    (path,) = result.files("save")
    with av.open(str(path)) as film:
        video, audio = film.streams.video[0], film.streams.audio[0]
        assert (video.width, video.height, video.average_rate, video.frames) == (64, 96, 25, 9)
        assert (audio.rate, audio.channels) == (44100, 2)
        assert "prompt" in film.metadata
    assert len(result.previews) >= 2


def test_models_unload_by_comfyuis_button_and_come_back(server):
    first = server.run(graphs.film(graphs.clip(seed=51)))
    server.post("/free", {"unload_models": True, "free_memory": True})
    second = server.run(graphs.film(graphs.clip(seed=52)))
    assert first.files("save") != second.files("save")


def test_another_way_to_start(server, comfyui):
    flags = ("--disable-dynamic-vram", "--cache-none", "--use-pytorch-cross-attention", "--fp16-text-enc")
    other = Server(find_python(comfyui), comfyui, server.base, *flags)
    try:
        other.wait()
        other.run(graphs.film(graphs.clip()))
    finally:
        other.stop()
