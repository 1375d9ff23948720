"""Graphs in API format, with the small models of conftest.py."""

MODELS = {"distilled": "magihuman/distill/", "base": "magihuman/base/", "sr_540p": "magihuman/540p_sr/",
          "sr_1080p": "magihuman/1080p_sr/"}
TURBO, WAN, SOUND = "turbo_vae/checkpoint-340000.ckpt", "wan2.2_vae.safetensors", "stable_audio.safetensors"
PROMPT = 'A woman in a green coat looks into the camera and says: "Good morning!"'


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def loaders(role: str = "distilled") -> dict:
    return {
        "model": node("MagiHumanModelLoader", model=MODELS[role], role="auto", weight_dtype="default"),
        "clip": node("MagiHumanTextEncoderLoader", text_encoder="t5gemma/model.safetensors",
                     tokenizer="beside the weights", weight_dtype="default"),
        "turbo": node("MagiHumanTurboVAELoader", vae=TURBO),
        "wan": node("MagiHumanVideoVAELoader", vae=WAN),
        "sound": node("MagiHumanAudioVAELoader", vae=SOUND),
        "text": node("MagiHumanTextEncode", clip=["clip", 0], prompt=PROMPT, negative="blurry, noise, flat voice"),
    }


def clip(role: str = "distilled", *, seconds: float = 0.4, seed: int = 1, steps: int = 2, **sampler) -> dict:
    """Text to a sampled latent, node "sample"."""
    return {
        **loaders(role),
        "empty": node("EmptyMagiHumanLatent", width=64, height=96, seconds=seconds),
        "sample": node("MagiHumanSampler", model=["model", 0], positive=["text", 0], negative=["text", 1],
                       latent_image=["empty", 0], seed=seed, mode="auto", steps=steps, sr_noise_level=220, **sampler),
    }


def film(graph: dict, latent=("sample", 0), vae: str = "turbo") -> dict:
    """The same graph with decoding and saving as mp4, node "save"."""
    return {
        **graph,
        "decode": node("MagiHumanDecode", vae=[vae, 0], audio_vae=["sound", 0], latent=list(latent),
                       sample_rate="44100"),
        "save": save_video(["decode", 2]),
    }


def save_video(link: list) -> dict:
    return node("SaveVideo", video=link, filename_prefix="video/magihuman", format="auto",
                **{"format.codec": "auto"}, codec="auto")
