"""CLIP and VAE objects against the core's own modules."""

import comfy.hooks
import comfy.memory_management
import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_audio import VAEDecodeAudio, VAEEncodeAudio
from comfy_extras.nodes_hooks import SetClipHooks
from magihuman_pack.magihuman_core import load_audio_vae, load_text_encoder, load_turbo_vae, load_video_vae
from magihuman_pack.magihuman_core.errors import InputError
from magihuman_pack.magihuman_core.media.waveform import resample_recording
from magihuman_pack.magihuman_core.tools.convert import convert
from magihuman_pack.magihuman_core.vae.latent_statistics import LATENT_MEAN, LATENT_STD
from magihuman_pack.nodes.adapter.clip import load_clip
from magihuman_pack.nodes.adapter.conds import SCRIPT
from magihuman_pack.nodes.adapter.latent_format import LatentFormat
from magihuman_pack.nodes.adapter.streams import nested
from magihuman_pack.nodes.adapter.vae import load_audio, load_turbo, load_video
from magihuman_pack.nodes.conditioning import MagiHumanScript
from small_clip import generator, max_error, random

import nodes

TEXT = "A man says (slowly:1.4): good morning."
VAES = {
    "turbo": ("vae/turbo_vae/checkpoint-340000.ckpt", load_turbo, load_turbo_vae),
    "wan": ("vae/wan2.2_vae.safetensors", load_video, load_video_vae),
    "audio": ("vae/stable-audio-open-1.0/model.safetensors", load_audio, load_audio_vae),
}


@pytest.fixture(scope="module", autouse=True)
def inference_mode():
    """As in a server."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def encoder_path(models):
    return models / "text_encoders/t5gemma-9b-9b-ul2/model-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def clip(encoder_path):
    return load_clip(encoder_path, None)


def encode(clip, text: str):
    """Through ComfyUI's CLIP Text Encode."""
    return nodes.CLIPTextEncode().encode(clip, text)[0][0][0]


def down_proj(clip):
    return clip.cond_stage_model.transformer.encoder.layers[0].mlp.down_proj.weight


def test_clip_equals_the_cores_encoder(clip, encoder_path):
    got = encode(clip, TEXT)
    assert got.dtype == torch.float32
    assert max_error(got, load_text_encoder(encoder_path).encode(TEXT)) < 2e-3  # rounded through fp16


def test_a_script_is_encoded_part_by_part(clip):
    positive, negative, seconds = MagiHumanScript.execute(
        clip, script='# morning\n2.5 A woman smiles.\n\n{"seconds": 4, "prompt": "A woman\\nnods."}',
        negative="").args
    [[text, more]] = positive
    assert seconds == 6.5 and [part.prompt for part in more[SCRIPT].segments] == ["A woman smiles.", "A woman\nnods."]
    assert max_error(text, encode(clip, "A woman smiles.")) == 0
    assert max_error(more[SCRIPT].texts[1], encode(clip, "A woman\nnods.")) == 0
    assert max_error(negative[0][0], encode(clip, "")) == 0
    for bad, words in (("A woman smiles.", "line 1 does not begin"), ("# nothing", "holds no part"),
                       ("0 A woman", "lasts 0.0 seconds")):
        with pytest.raises(InputError, match=words):
            MagiHumanScript.execute(clip, script=bad, negative="")


@pytest.mark.parametrize("kept", ["bf16", "fp8", "a file in fp8", "a file in int8"])
def test_clip_with_weights_in_fewer_bits_stays_close(clip, encoder_path, tmp_path, kept):
    if kept.startswith("a file in "):
        file = convert(encoder_path, tmp_path / "narrow.safetensors", dtype=kept.removeprefix("a file in "))
        narrow = load_clip(file, encoder_path.with_name("tokenizer.json"))
    else:
        narrow = load_clip(encoder_path, None, torch.bfloat16 if kept == "bf16" else torch.float8_e4m3fn)
    if kept == "bf16":
        assert down_proj(narrow).dtype == torch.bfloat16
    else:
        assert type(down_proj(narrow)).__name__ == "QuantizedTensor"
    wanted = encode(clip, TEXT)
    assert (encode(narrow, TEXT) - wanted).norm() / wanted.norm() < 0.1


def test_without_bf16_weights_stay_as_they_are_and_are_computed_in_fp32(encoder_path, clip, tmp_path, monkeypatch):
    file = convert(encoder_path, tmp_path / "bf16.safetensors", dtype="bf16")
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda *_, **__: False)
    kept = load_clip(file, encoder_path.with_name("tokenizer.json"))
    assert down_proj(kept).dtype == torch.bfloat16
    wanted = load_text_encoder(file, encoder_path.with_name("tokenizer.json"), dtype=torch.float32).encode(TEXT)
    assert max_error(encode(kept, TEXT), wanted) < 2e-3


def test_a_clip_is_loaded_anew_for_another_device_and_takes_hooks(clip):
    for copy in (clip.patcher.clone(force_deepcopy=True), clip.patcher.deepclone_multigpu(clip.patcher.load_device)):
        assert copy.model is not clip.cond_stage_model
        other = clip.clone()
        other.patcher, other.cond_stage_model = copy, copy.model
        assert max_error(encode(other, TEXT), encode(clip, TEXT)) == 0
    key = "text_encoders.transformer.encoder.layers.0.mlp.down_proj"
    lora = {f"{key}.lora_A.weight": random(2, 64), f"{key}.lora_B.weight": random(32, 2)}
    hook = comfy.hooks.create_hook_lora(lora, 0.0, 1.0)
    hooked = SetClipHooks().apply_hooks(clip, False, True, hook)[0]
    _, patched = comfy.sd.load_lora_for_models(None, clip, lora, 0, 1.0)
    wanted = encode(patched, TEXT)
    assert max_error(wanted, encode(clip, TEXT)) > 1e-2
    assert max_error(encode(hooked, TEXT), wanted) < 2e-3


def test_an_empty_text_has_two_tokens_and_a_long_one_is_cut_at_640(clip):
    assert encode(clip, "").shape == (1, 2, 32)
    assert encode(clip.clone(), "word " * 900).shape == (1, 640, 32)


def test_lora_changes_what_clip_says(clip):
    key = "text_encoders.transformer.encoder.layers.0.mlp.down_proj"
    lora = {f"{key}.lora_A.weight": random(2, 64), f"{key}.lora_B.weight": random(32, 2)}
    _, patched = comfy.sd.load_lora_for_models(None, clip, lora, 0, 1.0)
    assert max_error(encode(patched, TEXT), encode(clip, TEXT)) > 1e-2


@pytest.fixture(scope="module")
def vaes(models):
    """{kind: (ComfyUI's VAE, the core's)}"""
    return {kind: (load(models / path), load_core(models / path)) for kind, (path, load, load_core) in VAES.items()}


@pytest.mark.parametrize("kind", VAES)
def test_a_vae_is_loaded_anew_for_another_device(vaes, kind):
    vae = vaes[kind][0]
    latent = random(1, 64, 4) if kind == "audio" else random(1, 48, 2, 4, 4)
    again = vae.patcher.deepclone_multigpu(vae.patcher.load_device)
    assert again.model is not vae.first_stage_model
    assert max_error(again.model.decode(latent), vae.first_stage_model.decode(latent)) == 0


@pytest.mark.parametrize("kind", ["turbo", "wan"])
def test_video_decoders_take_raw_latents_whole_and_in_tiles(vaes, kind):
    vae, core = vaes[kind]
    z = random(1, 48, 4, 6, 8)
    wanted = ((core.decode(z, normalized=False) + 1) / 2).clamp(0, 1)[0].permute(1, 2, 3, 0)
    latent = {"samples": nested(z, random(1, 64, 13))}
    assert max_error(nodes.VAEDecode().decode(vae, latent)[0], wanted) < 1e-5
    one_tile = nodes.VAEDecodeTiled().decode(vae, latent, 512, 64, 64, 8)[0]
    assert max_error(one_tile, wanted) < 1e-5
    assert nodes.VAEDecodeTiled().decode(vae, latent, 64, 16, 64, 8)[0].shape == wanted.shape
    assert vae.temporal_compression_decode() == 4 and vae.spacial_compression_decode() == 16


def test_video_encoder_equals_the_cores(vaes):
    vae, core = vaes["wan"]
    images = torch.rand((5, 64, 96, 3), generator=generator)
    wanted = core.encode((images.movedim(-1, 0)[None] * 2 - 1), normalized=False)
    assert max_error(nodes.VAEEncode().encode(vae, images)[0]["samples"], wanted) < 1e-5
    assert nodes.VAEEncodeTiled().encode(vae, images, 512, 64, 64, 8)[0]["samples"].shape == wanted.shape


def test_comfyuis_latent_format_has_the_decoders_mean_and_std():
    z = random(1, 48, 4, 6, 8)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (LATENT_MEAN, LATENT_STD))
    assert max_error(LatentFormat().process_in(z), (z - mean) / std) < 1e-6


def test_audio_is_decoded_whole_at_44100_hz(vaes):
    vae, core = vaes["audio"]
    z = random(1, 64, 13)
    wanted = resample_recording(core.decode(z), 51200, 44100)  # whose end does not run into its beginning
    assert wanted.shape[-1] == 13 * 1764, "nothing may be lost at the ends"
    decoded = VAEDecodeAudio.execute(vae, {"samples": nested(random(1, 48, 4, 6, 8), z)}).args[0]
    assert decoded["sample_rate"] == 44100
    scale = max(1.0, float(wanted.std()) * 5)  # ComfyUI's node makes loud audio quieter
    assert max_error(decoded["waveform"], wanted / scale) < 1e-4
    assert max_error(vae.decode(z), vae.decode_tiled(z, tile_x=64, tile_y=1, overlap=8)) < 1e-4


def test_mono_audio_is_doubled_and_encoded_as_by_the_core(vaes):
    vae, core = vaes["audio"]
    waveform = random(1, 1, 5000)
    encoded = VAEEncodeAudio.execute(vae, {"waveform": waveform, "sample_rate": 51200}).args[0]["samples"]
    assert encoded.shape == (1, 64, 3)
    assert max_error(encoded, core.encode_long(waveform.expand(1, 2, -1))) < 1e-4


def test_dynamic_memory_management_changes_nothing(clip, encoder_path, vaes, models, monkeypatch):
    """With it layers have no weights of their own until they are loaded."""
    with monkeypatch.context() as patch:
        patch.setattr(comfy.memory_management, "aimdo_enabled", True)
        dynamic = load_clip(encoder_path, None)
        loaded = {kind: load(models / path) for kind, (path, load, _) in VAES.items()}
    assert max_error(encode(dynamic, TEXT), encode(clip, TEXT)) == 0
    for kind, vae in loaded.items():
        latent = random(1, 64, 4) if kind == "audio" else random(1, 48, 2, 4, 4)
        assert max_error(vae.decode(latent), vaes[kind][0].decode(latent)) == 0
