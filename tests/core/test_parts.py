"""What text encoder, network and VAEs have in common: the released sizes, dtypes, operations, and what they refuse."""

import json

import pytest
import torch
from safetensors.torch import load_file

from magihuman_core.errors import CheckpointError, InputError
from magihuman_core.text.encoder import TextEncoder
from magihuman_core.vae.audio import AudioVAE
from magihuman_core.vae.latent_statistics import LATENT_MEAN, LATENT_STD
from magihuman_core.vae.turbo import TurboVAE
from magihuman_core.vae.turbo_config import TurboVAEConfig
from magihuman_core.vae.video import VideoVAE, VideoVAEConfig
from magihuman_core.weights.audio_keys import official_state_dict

from .golden import DATA, counting_operations, load_small, real_model, relative, shapes_of, small_model

PARTS = {  # class, the operations that make its matrices
    "text_encoder": (TextEncoder, ["Linear", "Embedding"]),
    "video_vae": (VideoVAE, ["Conv2d", "Conv3d"]),
    "audio_vae": (AudioVAE, ["Conv1d", "ConvTranspose1d"]),
    "turbo_vae": (TurboVAE, ["Conv2d", "Conv3d"]),
}


@pytest.mark.parametrize("kind", PARTS)
def test_the_default_sizes_are_those_of_the_released_model(kind):
    part = PARTS[kind][0](dtype=torch.bfloat16, device="meta")
    assert {(p.dtype, p.device.type) for p in part.parameters()} == {(torch.bfloat16, "meta")}
    weights = official_state_dict(part) if kind == "audio_vae" else part.state_dict()
    assert shapes_of(weights) == shapes_of(real_model(kind))


def test_sizes_are_inferred_from_the_released_shapes():
    for kind, config in (("video_vae", VideoVAEConfig), ("turbo_vae", TurboVAEConfig)):
        assert config.from_shapes(shapes_of(real_model(kind)), "real") == config()
    stored = json.loads((DATA / "turbo_vaed" / "real_keys.json").read_text())["config"]
    assert TurboVAEConfig.from_mapping(stored) == TurboVAEConfig()


@pytest.mark.parametrize("kind", PARTS)
def test_every_matrix_is_made_by_the_injected_operations(kind):
    operations, made = counting_operations(*PARTS[kind][1])
    part = load_small(kind, operations=operations)
    inside = {id(parameter) for layer in made for parameter in layer.parameters()}
    assert all(id(p) in inside for name, p in part.named_parameters() if p.ndim > 1 and name.endswith("weight"))
    assert len(made) == sum(tensor.ndim > 1 and key.endswith(("weight", "weight_v"))
                            for key, tensor in small_model(kind).items())


@pytest.mark.parametrize(("kind", "name", "shape", "bound"), [
    ("video_vae", "encode", (1, 3, 5, 32, 32), 0.03), ("video_vae", "decode", (1, 48, 2, 2, 2), 0.05),
    ("turbo_vae", "decode", (1, 48, 9, 2, 3), 0.03), ("audio_vae", "decode", (1, 64, 3), 0.1),
])  # fmt: skip
@torch.inference_mode()
def test_a_bf16_vae_stays_close_and_keeps_the_dtype_of_its_input(kind, name, shape, bound):
    exact, rounded = (load_small(kind, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert {p.dtype for p in rounded.parameters()} == {torch.bfloat16}
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    found = getattr(rounded, name)(x)
    assert 0 < relative(found, getattr(exact, name)(x)) < bound
    if kind != "audio_vae":
        assert found.dtype == torch.float32
        assert getattr(exact, name)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(("file", "mark"), [("wan22_vae/tiny", ""), ("turbo_vaed/tiny_weights", "__")])
def test_latent_statistics_are_the_recorded_ones(file, mark):
    recorded = load_file(DATA / f"{file}.safetensors")
    assert torch.equal(torch.tensor(LATENT_MEAN), recorded[f"{mark}mean"])
    assert torch.equal(torch.tensor(LATENT_STD), recorded[f"{mark}std"])


LATENTS = [(1, 16, 2, 2, 2), (48, 2, 2, 2), (1, 48, 0, 2, 2), (1, 48, 2, 2)]


@pytest.mark.parametrize(("kind", "name", "message", "shapes"), [
    ("turbo_vae", "decode", r"\[B, 48, T, H, W\]", LATENTS), ("video_vae", "decode", r"\[B, 48, T, H, W\]", LATENTS),
    ("video_vae", "encode", r"\[B, 3, F, height, width\]", [(1, 4, 1, 16, 16), (3, 1, 16, 16), (1, 3, 0, 16, 16)]),
    ("video_vae", "encode", r"24x16 pixels.*multiples of 16", [(1, 3, 1, 16, 24)]),
    ("audio_vae", "decode", r"latent.*\[batch, 64", [(1, 4, 5), (1, 64, 0), (64, 3)]),
    ("audio_vae", "encode", "waveform", [(2, 9999), (1, 1, 9999), (1, 2, 0)]),
    ("audio_vae", "encode_long", "waveform", [(2, 9999), (1, 1, 9999), (1, 2, 0)]),
    ("audio_vae", "encode", r"2047 samples.*2048", [(1, 2, 2047)]),
])  # fmt: skip
def test_tensors_of_another_shape_are_refused(kind, name, message, shapes):
    part = load_small(kind)
    for shape in shapes:
        with pytest.raises(InputError, match=message):
            getattr(part, name)(torch.zeros(shape))
    if kind == "audio_vae":
        with pytest.raises(InputError, match="must be floating"):
            getattr(part, name)(torch.zeros(1, 2, 9999).long())


def only(key, *shape):
    return lambda weights: {key: torch.ones(shape)}


def without(part):
    return lambda weights: {key: value for key, value in weights.items() if part not in key}


UNIT = "encoder.layers.1.layers.0.layers.1.weight_g"
UNUSABLE = [  # part, what becomes of its weights, words of the message
    ("network", only("decoder.conv.weight", 3), "not a MagiHuman network"),
    ("network", without("layers.1.attention.linear_proj"), "missing"),
    ("network", lambda w: w | {"block.layers.1.mlp.down_proj.weight": torch.zeros(7, 340)}, "block"),
    ("text_encoder", only("model.layers.0.input_layernorm.weight", 1), "no T5Gemma encoder"),
    ("text_encoder", without("embed_tokens.weight"), "embed_tokens.weight"),
    ("text_encoder", without("layers.1.mlp.up_proj.weight"), "layers.1.mlp.up_proj.weight"),
    ("text_encoder", without("encoder.norm.weight"), "norm.weight"),
    ("turbo_vae", only("decoder.conv_in.weight", 2), "not a Turbo VAE"),
    ("turbo_vae", only("encoder.conv1.weight", 4, 12, 3, 3, 3), "not a Turbo VAE"),
    ("turbo_vae", lambda w: {}, "not a Turbo VAE"),
    ("turbo_vae", without("resnets.1.conv2.conv.bias"), r"resnets\.1\.conv2\.conv\.bias"),
    ("video_vae", only("decoder.conv_in.conv.weight", 2), r"not a Wan2\.2-type video VAE"),  # a Turbo VAE
    ("video_vae", only("encoder.conv1.weight", 96, 3, 3, 3, 3), r"not a Wan2\.2-type video VAE"),  # Wan2.1
    ("video_vae", lambda w: {}, r"not a Wan2\.2-type video VAE"),
    ("video_vae", without("upsamples.1.upsamples.1.residual.3.gamma"), r"residual\.3\.gamma"),
    ("video_vae", lambda w: w | {"quant.weight": torch.ones(1)}, "unexpected"),
    ("video_vae", lambda w: w | {"encoder.conv1.weight": torch.ones(3, 12, 3, 3, 3)}, "4 is not a multiple of 3"),
    ("audio_vae", only("encoder.conv_in.weight", 1), "no audio VAE"),
    ("audio_vae", without("decoder.layers.0."), r"decoder\.layers\.0"),
    ("audio_vae", without(UNIT), UNIT),
    ("audio_vae", lambda w: w | {UNIT: torch.ones(1, 1, 1)}, rf"{UNIT} has shape \[1, 1, 1\]"),
    ("audio_vae", lambda w: w | {"decoder.layers.6.alpha": torch.zeros(5)}, "shape"),
    ("audio_vae", lambda w: w | {"encoder.layers.7.weight_g": torch.zeros(64, 1, 1),
                                 "encoder.layers.7.weight_v": torch.zeros(64, 64, 3)}, "mean and scale"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "message"), UNUSABLE)
def test_unusable_files_are_refused(kind, change, message):
    with pytest.raises(CheckpointError, match=message):
        load_small(kind, change(small_model(kind)))
