"""Ways through the nodes, with core's nodes mixed in. Small models, a real server."""

import json

import av
import graphs
import pytest
from graphs import node
from PIL import Image


@pytest.fixture(scope="module")
def picture(server):
    """A file of the input folder: 80x50 pixels."""
    image = Image.linear_gradient("L").resize((80, 50)).convert("RGB")
    image.save(server.base / "input/picture.png")
    return "picture.png"


def film_facts(result) -> tuple:
    """(width, height, frames, seconds of sound) of the film that the node "save" wrote."""
    (path,) = result.files("save")
    with av.open(str(path)) as film:
        video, audio = film.streams.video[0], film.streams.audio[0]
        return video.width, video.height, video.frames, round(float(audio.duration * audio.time_base), 2)


def test_picture_to_film(server, picture):
    graph = graphs.clip()
    graph["picture"] = node("LoadImage", image=picture)
    graph["held"] = node("MagiHumanReferenceImage", vae=["wan", 0], image=["picture", 0], latent=["empty", 0])
    graph["sample"]["inputs"]["latent_image"] = ["held", 0]
    assert film_facts(server.run(graphs.film(graph, vae="wan"))) == (64, 96, 9, 0.36)


def test_extend(server):
    graph = graphs.film(graphs.clip())
    graph["more"] = node("MagiHumanExtend", vae=["wan", 0], audio_vae=["sound", 0], images=["decode", 0],
                         audio=["decode", 1], seconds=0.4, overlap_seconds=0.2)
    graph["sample2"] = node("MagiHumanSampler", model=["model", 0], positive=["text", 0], latent_image=["more", 0],
                            seed=4, mode="auto", steps=2, sr_noise_level=220)
    graph["decode"]["inputs"]["latent"] = ["sample", 0]
    graph["decode2"] = {**graph["decode"], "inputs": {**graph["decode"]["inputs"], "latent": ["sample2", 0]}}
    graph["save"] = graphs.save_video(["decode2", 2])
    assert film_facts(server.run(graph))[2] == 13  # 5 kept and 10 new audio latents: 4 latent frames


def test_core_sampler_decoders_and_av_nodes(server):
    graph = graphs.clip()
    graph["sample"] = node("KSampler", model=["model", 0], positive=["text", 0], negative=["text", 1],
                           latent_image=["empty", 0], seed=1, steps=2, cfg=1.0, sampler_name="euler",
                           scheduler="simple", denoise=1.0)
    graph["apart"] = node("LTXVSeparateAVLatent", av_latent=["sample", 0])
    graph["together"] = node("LTXVConcatAVLatent", video_latent=["apart", 0], audio_latent=["apart", 1])
    graph["images"] = node("VAEDecode", samples=["together", 0], vae=["turbo", 0])
    graph["tiled"] = node("VAEDecodeTiled", samples=["together", 0], vae=["wan", 0], tile_size=64, overlap=16,
                          temporal_size=64, temporal_overlap=8)
    graph["preview"] = node("PreviewImage", images=["tiled", 0])
    graph["audio"] = node("VAEDecodeAudio", samples=["together", 0], vae=["sound", 0])
    graph["video"] = node("CreateVideo", images=["images", 0], audio=["audio", 0], fps=25.0, bit_depth=8)
    graph["save"] = graphs.save_video(["video", 0])
    result = server.run(graph)
    assert film_facts(result)[:3] == (64, 96, 9)
    assert len(result.files("preview")) == 9


def test_in_parts_is_identical_to_the_one_node(server):
    for role, sampler, guidance in (("distilled", "renoise", "auto"), ("base", "unipc", "full CFG")):
        graph = graphs.clip(role, seed=7)
        graph["noise"] = node("RandomNoise", noise_seed=7)
        graph["guider"] = node("MagiHumanGuider", model=["model", 0], positive=["text", 0], negative=["text", 1],
                               guidance=guidance, video=5.0, video_late=2.0, audio=5.0, sr_scale=3.5)
        graph["sampler"] = node("MagiHumanSamplerSelect", sampler=sampler, sr_noise_level=220)
        graph["sigmas"] = node("MagiHumanScheduler", steps=2, shift=5.0)
        graph["parts"] = node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["sampler", 0],
                              sigmas=["sigmas", 0], latent_image=["empty", 0])
        # Latents cannot be saved as nested ones, so frames are compared, without loss.
        for name in ("sample", "parts"):
            graph[f"frames_{name}"] = node("VAEDecode", samples=[name, 0], vae=["turbo", 0])
            graph[f"save_{name}"] = node("PreviewImage", images=[f"frames_{name}", 0])
            graph[f"sound_{name}"] = node("VAEDecodeAudio", samples=[name, 0], vae=["sound", 0])
            graph[f"flac_{name}"] = node("SaveAudio", audio=[f"sound_{name}", 0], filename_prefix=f"audio/{name}")
        result = server.run(graph)
        one, parts = result.files("save_sample"), result.files("save_parts")
        assert len(one) == len(parts) == 9
        for a, b in zip(one, parts, strict=True):
            assert Image.open(a).tobytes() == Image.open(b).tobytes(), role
        sounds = [pcm(result.files(f"flac_{name}")[0]) for name in ("sample", "parts")]
        assert sounds[0] == sounds[1]


def pcm(path) -> bytes:
    with av.open(str(path)) as file:
        return b"".join(frame.to_ndarray().tobytes() for frame in file.decode(audio=0))


def test_a_cancelled_run_leaves_the_server_well(server):
    graph = graphs.clip("base", seconds=8.0, steps=200, seed=11)
    graph["end"] = node("PreviewImage", images=["decoded", 0])
    graph["decoded"] = node("VAEDecode", samples=["sample", 0], vae=["turbo", 0])
    cancelled = []

    def cancel(kind, data):
        if kind == "progress" and data["value"] >= 2 and not cancelled:
            cancelled.append(True)
            server.interrupt()

    result = server.run(graph, cancel)
    assert cancelled and result.end == "execution_interrupted"
    assert film_facts(server.run(graphs.film(graphs.clip(seed=12))))[2] == 9


def test_previews_show_a_middle_frame(server, picture):
    result = server.run(graphs.film(graphs.clip(seed=21, steps=3)))
    assert len(result.previews) >= 3
    # After eight bytes of type and format, or with metadata in front, the picture itself is a JPEG.
    assert all(b"\xff\xd8\xff" in data for data in result.previews)


def test_lora_with_official_names_through_core(server):
    make_lora(server.base / "models/loras/official.safetensors")
    frames = {}
    for strength in (0.0, 1.0):
        graph = graphs.clip(seed=31)
        graph["lora"] = node("LoraLoaderModelOnly", model=["model", 0], lora_name="official.safetensors",
                             strength_model=strength)
        graph["sample"]["inputs"]["model"] = ["lora", 0]
        graph["images"] = node("VAEDecode", samples=["sample", 0], vae=["turbo", 0])
        graph["save"] = node("PreviewImage", images=["images", 0])
        frames[strength] = [Image.open(path).tobytes() for path in server.run(graph).files("save")]
    assert frames[0.0] != frames[1.0]
    assert "lora key not loaded" not in server.log and "NOT LOADED" not in server.log


def make_lora(path):
    import torch
    from make_random_models import HEAD_DIM, HEADS, HIDDEN, KV_HEADS
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(5)
    rows = 3 * ((HEADS + 2 * KV_HEADS) * HEAD_DIM + HEADS)
    name = "diffusion_model.block.layers.0.attention.linear_qkv"
    save_file({f"{name}.lora_A.weight": torch.randn(4, HIDDEN, generator=generator),
               f"{name}.lora_B.weight": torch.randn(rows, 4, generator=generator)}, path)


def test_torch_compile_and_step_cache_nodes_apply(server):
    graph = graphs.clip(seed=41, steps=4)
    graph["cached"] = node("EasyCache", model=["model", 0], reuse_threshold=0.2, start_percent=0.15, end_percent=0.95,
                           verbose=True)
    graph["sample"]["inputs"]["model"] = ["cached", 0]
    assert film_facts(server.run(graphs.film(graph)))[2] == 9


def test_prompt_node(server):
    graph = {"prompt": node("MagiHumanPrompt", body="A man nods.", dialogue="old man, German: Guten Tag",
                            background_sound=""),
             "show": node("PreviewAny", source=["prompt", 0])}
    text = json.dumps(server.run(graph).outputs["show"])
    assert "Dialogue:" in text and "Guten Tag" in text and "<No prominent background sound>" in text
