# ruff: noqa: E402
"""CLIP and VAE objects against the core's own modules. Prints what it checked."""

import sys
import tempfile
from pathlib import Path

from setup_inside import load_pack

MODELS = Path(sys.argv[1])
TURBO, WAN = MODELS / "vae/turbo_vae/checkpoint-340000.ckpt", MODELS / "vae/wan2.2_vae.safetensors"
SOUND = MODELS / "vae/stable_audio.safetensors"
load_pack()
import comfy.memory_management
import comfy.sd
import torch
from comfy_extras.nodes_audio import VAEDecodeAudio, VAEEncodeAudio
from magihuman_pack.magihuman_core import load_audio_vae, load_text_encoder, load_turbo_vae, load_video_vae
from magihuman_pack.magihuman_core.media.waveform import resample
from magihuman_pack.magihuman_core.tools.convert import convert
from magihuman_pack.magihuman_core.vae.latent_statistics import LATENT_MEAN, LATENT_STD
from magihuman_pack.nodes.adapter.clip import load_clip
from magihuman_pack.nodes.adapter.model import LatentFormat
from magihuman_pack.nodes.adapter.streams import nested
from magihuman_pack.nodes.adapter.vae import load_audio, load_turbo, load_video

import nodes

seconds = sys.modules["magihuman_pack"].import_seconds
assert seconds < 0.3, f"importing the pack takes {seconds:.2f} s of CPU, which would slow the start of ComfyUI"
generator = torch.Generator().manual_seed(3)


def random(*shape):
    return torch.randn(shape, generator=generator)


def worst(a, b):
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).abs().max())


with torch.inference_mode():
    # The text encoder, also through core's CLIP Text Encode, and with weights kept in less.
    path = MODELS / "text_encoders/t5gemma/model.safetensors"
    clip, own = load_clip(path, None), load_text_encoder(path)
    text = "A man says (slowly:1.4): good morning."
    got = nodes.CLIPTextEncode().encode(clip, text)[0][0][0]
    assert worst(got, own.encode(text)) < 2e-3 and got.dtype == torch.float32  # rounded through fp16
    narrow = load_clip(path, None, torch.bfloat16)
    assert narrow.cond_stage_model.transformer.encoder.layers[0].mlp.down_proj.weight.dtype == torch.bfloat16
    narrow = {"bf16": narrow, "fp8": load_clip(path, None, torch.float8_e4m3fn)}
    with tempfile.TemporaryDirectory() as folder:
        for kept in ("fp8", "int8"):  # a file that is stored so stays as it is
            file = convert(path, Path(folder) / f"{kept}.safetensors", dtype=kept)
            narrow[f"a file in {kept}"] = load_clip(file, path.with_name("tokenizer.json"))
    for name, other in narrow.items():
        weight = other.cond_stage_model.transformer.encoder.layers[0].mlp.down_proj.weight
        assert name == "bf16" or type(weight).__name__ == "QuantizedTensor", (name, type(weight))
        error = (nodes.CLIPTextEncode().encode(other, text)[0][0][0] - got).norm() / got.norm()
        assert error < 0.1, (name, error)
        print(f"text encoder, {name}: relative error {error:.3f}")
    assert nodes.CLIPTextEncode().encode(clip, "")[0][0][0].shape == (1, 2, 32)
    assert nodes.CLIPTextEncode().encode(clip.clone(), "word " * 900)[0][0][0].shape[1] == 640
    key = "text_encoders.transformer.encoder.layers.0.mlp.down_proj"
    lora = {f"{key}.lora_A.weight": random(2, 64), f"{key}.lora_B.weight": random(32, 2)}
    _, patched = comfy.sd.load_lora_for_models(None, clip, lora, 0, 1.0)
    assert worst(nodes.CLIPTextEncode().encode(patched, text)[0][0][0], got) > 1e-2
    print("CLIP equals the core's encoder; dtypes, empty and long texts, LoRA")

    # Both video decoders take raw latents, whole and in tiles; the Wan VAE encodes.
    z = random(1, 48, 4, 6, 8)
    for name, vae, core in (("turbo", load_turbo(TURBO), load_turbo_vae(TURBO)),
                            ("wan", load_video(WAN), load_video_vae(WAN))):
        want = ((core.decode(z, normalized=False) + 1) / 2).clamp(0, 1)[0].permute(1, 2, 3, 0)
        latent = {"samples": nested(z, random(1, 64, 13))}
        assert worst(nodes.VAEDecode().decode(vae, latent)[0], want) < 1e-5, name
        tiled = nodes.VAEDecodeTiled().decode(vae, latent, 512, 64, 64, 8)[0]
        assert worst(tiled, want) < 1e-5, name  # one tile covers it
        assert nodes.VAEDecodeTiled().decode(vae, latent, 64, 16, 64, 8)[0].shape == want.shape
        assert vae.temporal_compression_decode() == 4 and vae.spacial_compression_decode() == 16
    images = torch.rand((5, 64, 96, 3), generator=generator)
    want = core.encode((images.movedim(-1, 0)[None] * 2 - 1), normalized=False)
    assert worst(nodes.VAEEncode().encode(vae, images)[0]["samples"], want) < 1e-5
    assert nodes.VAEEncodeTiled().encode(vae, images, 512, 64, 64, 8)[0]["samples"].shape == want.shape
    print("video VAEs equal the core's")

    # Core's normalization is the one the decoders use.
    latent_format = LatentFormat()
    statistics = [torch.tensor(values).view(1, -1, 1, 1, 1) for values in (LATENT_MEAN, LATENT_STD)]
    assert worst(latent_format.process_in(z), (z - statistics[0]) / statistics[1]) < 1e-6
    print("mean and std of latents agree with ComfyUI's")

    # Sound: nothing is lost at the ends, mono is doubled, and 44.1 kHz comes out.
    vae, core = load_audio(SOUND), load_audio_vae(SOUND)
    z = random(1, 64, 13)
    want = resample(core.decode(z), 51200, 44100)
    decoded = VAEDecodeAudio.execute(vae, {"samples": nested(random(1, 48, 4, 6, 8), z)}).args[0]
    assert decoded["sample_rate"] == 44100
    scale = max(1.0, float(want.std()) * 5)  # core's node makes loud sound quieter
    assert worst(decoded["waveform"], want / scale) < 1e-4
    assert want.shape[-1] == 13 * 1764
    waveform = random(1, 1, 5000)
    encoded = VAEEncodeAudio.execute(vae, {"waveform": waveform, "sample_rate": 51200}).args[0]["samples"]
    assert encoded.shape == (1, 64, 3)
    assert worst(encoded, core.encode_long(waveform.expand(1, 2, -1))) < 1e-4
    assert worst(vae.decode(z), vae.decode_tiled(z, tile_x=64, tile_y=1, overlap=8)) < 1e-4
    print("audio VAE equals the core's")

    # Layers have no weights of their own with dynamic memory management until they are loaded.
    comfy.memory_management.aimdo_enabled = True
    try:
        dynamic = load_clip(path, None)
        load_turbo(TURBO)
        load_video(WAN)
        load_audio(SOUND)
    finally:
        comfy.memory_management.aimdo_enabled = False
    assert worst(nodes.CLIPTextEncode().encode(dynamic, text)[0][0][0], got) == 0
    print("loading with dynamic memory management")
