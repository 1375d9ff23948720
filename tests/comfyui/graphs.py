"""Graphs in API format, with the models and files of conftest.py."""

MODELS = {"distilled": "magihuman/distill/", "base": "magihuman/base/", "sr_540p": "magihuman/540p_sr/"}
PROMPT = 'A woman in a green coat looks into the camera and says: "Good morning!"'


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def sampler(latent: str = "empty", **inputs) -> dict:
    return node("MagiHumanSampler", **{
        "model": ["model", 0], "positive": ["text", 0], "negative": ["text", 1], "latent_image": [latent, 0],
        "seed": 1, "mode": "auto", "steps": 2, "sr_noise_level": 220, **inputs})


def core_sampler(latent: str = "empty", denoise: float = 1.0) -> dict:
    return node("KSampler", model=["model", 0], positive=["text", 0], negative=["text", 1], latent_image=[latent, 0],
                seed=1, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=denoise)


def clip(role: str = "distilled", *, seconds: float = 0.4, **inputs) -> dict:
    """Text to a sampled latent, node "sample"; inputs are the sampler's."""
    return {
        "model": node("MagiHumanModelLoader", model=MODELS[role], role="auto", weight_dtype="default"),
        "encoder": node("MagiHumanTextEncoderLoader", text_encoder="t5gemma-9b-9b-ul2/",
                        tokenizer="beside the weights", weight_dtype="default"),
        "turbo_vae": node("MagiHumanTurboVAELoader", vae="turbo_vae/checkpoint-340000.ckpt"),
        "wan_vae": node("MagiHumanVideoVAELoader", vae="wan2.2_vae.safetensors"),
        "audio_vae": node("MagiHumanAudioVAELoader", vae="stable-audio-open-1.0/model.safetensors"),
        "text": node("MagiHumanTextEncode", clip=["encoder", 0], prompt=PROMPT, negative="blurry, noise, flat voice"),
        "empty": node("EmptyMagiHumanLatent", width=64, height=96, seconds=seconds),
        "sample": sampler(**inputs),
    }


def with_frames(graph: dict) -> dict:
    """The same graph with the latent of "sample" decoded, and its frames saved by the node "frames"."""
    return {
        **graph,
        "images": node("VAEDecode", samples=["sample", 0], vae=["turbo_vae", 0]),
        "frames": node("PreviewImage", images=["images", 0]),
    }


def with_video(graph: dict) -> dict:
    """The same graph with the latent of "sample" decoded, and saved as mp4 by the node "video"."""
    return {
        **graph,
        "decode": node("MagiHumanDecode", vae=["turbo_vae", 0], audio_vae=["audio_vae", 0], latent=["sample", 0],
                       sample_rate="44100"),
        "video": save_video(["decode", 2]),
    }


def save_video(link: list) -> dict:
    return node("SaveVideo", video=link, filename_prefix="video/magihuman", format="auto",
                **{"format.codec": "auto"}, codec="auto")


def changed(graph: dict, changes: dict[str, dict]) -> dict:
    """The same graph with other nodes, and other inputs of its nodes; an input of None is taken off."""
    graph = dict(graph)
    for key, change in changes.items():
        found = change if "class_type" in change else {**graph[key], "inputs": {**graph[key]["inputs"], **change}}
        graph[key] = {**found, "inputs": {name: value for name, value in found["inputs"].items() if value is not None}}
    return graph
