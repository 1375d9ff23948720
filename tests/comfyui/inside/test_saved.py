"""What core's save nodes write of a MODEL, a CLIP and a VAE is read again, by our loaders and by the core."""

import folder_paths
import pytest
import torch
from comfy_extras.nodes_model_merging import CheckpointSave, CLIPSave, ModelSave, VAESave
from magihuman_pack.magihuman_core import load_dit, load_text_encoder
from magihuman_pack.magihuman_core.loading.vae import load_audio_vae, load_turbo_vae, load_video_vae
from magihuman_pack.magihuman_core.tools.convert import convert
from magihuman_pack.magihuman_core.tools.inspect import describe
from magihuman_pack.magihuman_core.weights.open import open_checkpoint
from magihuman_pack.nodes.adapter.clip import load_clip
from magihuman_pack.nodes.adapter.load_model import load_model
from magihuman_pack.nodes.adapter.vae import load_audio, load_turbo, load_video
from small_clip import max_error, random, relative_error, sample, sample_by_core, with_lora

QKV = "block.layers.0.attention.linear_qkv"
VAES = {
    "turbo": ("vae/turbo_vae/checkpoint-340000.ckpt", load_turbo, load_turbo_vae),
    "wan": ("vae/wan2.2_vae.safetensors", load_video, load_video_vae),
    "audio": ("vae/stable-audio-open-1.0/model.safetensors", load_audio, load_audio_vae),
}


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """saved(node, ...) -> the one file that this node writes."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))

    def save(node, *inputs):
        node().save(*inputs, filename_prefix=node.__name__)
        (path,) = tmp_path.glob(f"{node.__name__}*.safetensors")
        return path

    return save


@pytest.fixture
def encoder_path(models):
    return models / "text_encoders/t5gemma-9b-9b-ul2/model-00001-of-00001.safetensors"


def lora_for(official):
    rows, columns = official[QKV + ".weight"].shape
    down = official["block.layers.2.mlp.down_proj.weight"]
    return {f"diffusion_model.{QKV}.lora_A.weight": random(4, columns),
            f"diffusion_model.{QKV}.lora_B.weight": random(rows, 4),
            "diffusion_model.block.layers.2.mlp.down_proj.diff": random(*down.shape) * 0.1}


def test_a_saved_model_with_lora_is_read_again(model, official, plain, saved):
    patched = with_lora(model, lora_for(official))
    wanted = sample(patched)
    assert max_error(wanted, plain) > 1e-2
    path = saved(ModelSave, patched)
    assert max_error(sample(load_model(path, "distilled", torch.float32)), wanted) == 0
    got = sample_by_core(load_dit(path, dtype=torch.float32), model.model.latent_format)
    assert max_error(got, wanted) <= 1e-4
    assert set(open_checkpoint(convert(path, path.with_name("official.safetensors")))) == set(official)


@pytest.mark.parametrize(("dtype", "quantize", "fast", "bits"), [
    (torch.bfloat16, None, False, 16),
    (None, "float8_e4m3fn", False, 8),
    (None, "float8_e4m3fn", True, 8),
    (None, "int8_tensorwise", False, 8),
    (None, "nvfp4", True, 16),
])
@pytest.mark.parametrize("patched", [False, True])
def test_a_saved_model_in_fewer_bits_is_read_again(distilled, official, saved, dtype, quantize, fast, bits, patched):
    model = load_model(distilled, "distilled", dtype, quantize, fast)
    if patched:
        model = with_lora(model, lora_for(official))
    path = saved(ModelSave, model)
    again = load_model(path, "distilled", dtype if bits == 16 else None)
    weight = again.model.diffusion_model.blocks[2].experts["shared"].mlp.down_proj.weight
    assert (type(weight).__name__ == "QuantizedTensor") == (bits == 8)
    # A changed weight is rounded again, by chance up or down; int8 rounds inputs too.
    tolerance = 0.02 if not patched and quantize != "int8_tensorwise" else 0.5 if quantize == "nvfp4" else 0.05
    assert relative_error(sample(again), sample(model)) < tolerance
    network = load_dit(path, dtype=torch.float32)
    shapes = {key: tuple(tensor.shape) for key, tensor in open_checkpoint(path, "network").items()}
    assert shapes == {key: tuple(tensor.shape) for key, tensor in official.items()}
    assert relative_error(sample_by_core(network, model.model.latent_format), sample(model)) < tolerance


def test_a_saved_text_encoder_brings_its_tokenizer_and_configuration(encoder_path, saved):
    clip = load_clip(encoder_path, None)
    path = saved(CLIPSave, clip)
    text = "A man says (slowly:1.4): good morning."
    wanted = clip.encode_from_tokens(clip.tokenize(text))
    again = load_clip(path, None)
    assert max_error(again.encode_from_tokens(again.tokenize(text)), wanted) == 0
    assert max_error(load_text_encoder(path).encode(text), wanted) < 2e-3


@pytest.mark.parametrize("kind", VAES)
def test_a_saved_vae_is_read_again(models, saved, kind):
    path, load, load_core = VAES[kind]
    vae = load(models / path)
    again = saved(VAESave, vae)
    latent = random(1, 64, 5) if kind == "audio" else random(1, 48, 2, 4, 4)
    assert max_error(load(again).decode(latent), vae.decode(latent)) < 1e-5
    assert set(load_core(again).state_dict()) == set(load_core(models / path).state_dict())


def test_a_saved_checkpoint_serves_every_loader(model, plain, models, encoder_path, saved):
    path, load, _ = VAES["wan"]
    clip, vae = load_clip(encoder_path, None), load(models / path)
    whole = saved(CheckpointSave, model, clip, vae)
    assert max_error(sample(load_model(whole, "distilled", torch.float32)), plain) == 0
    again = load_clip(whole, None)
    assert max_error(again.encode_from_tokens(again.tokenize("Hello")),
                     clip.encode_from_tokens(clip.tokenize("Hello"))) == 0
    latent = random(1, 48, 2, 4, 4)
    assert max_error(load(whole).decode(latent), vae.decode(latent)) < 1e-5
    assert "MagiHuman network" in describe(whole)
