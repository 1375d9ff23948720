"""The audio VAE against recorded numbers, and itself in tiles and windows. Against diffusers' implementation:
test_weights_diffusers.py."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from magihuman_core.errors import InputError
from magihuman_core.loading.vae import load_audio_vae
from magihuman_core.vae import audio as audio_vae
from magihuman_core.vae.audio import AudioVAE, AudioVAEConfig
from magihuman_core.vae.audio_windows import encode_in_windows, merge_overlap
from magihuman_core.weights.audio_keys import folded, official_keys, official_state_dict
from training.train_audio_vae import weight_normed

from .golden import DATA, real_model, small_model

SMALL = AudioVAEConfig(widths=(4, 6, 8), strides=(2, 4), latent_channels=3)


@pytest.fixture(scope="module")
def weights():
    return small_model("audio_vae")


@pytest.fixture(scope="module")
def golden():
    return load_file(DATA / "sa_audio" / "oobleck_tiny.safetensors")


def random_vae(config, seed=0, **options):
    torch.manual_seed(seed)
    vae = AudioVAE(config, **options)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if name.endswith(("alpha", "beta")):
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif name.endswith("weight"):  # no two channels of one length
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter[:, :1, :1]))
    return vae


def close(result, expected):
    assert result.shape == expected.shape
    difference = result.double() - expected.double()
    assert difference.abs().max() <= 5e-4 or difference.norm() / expected.double().norm() <= 2e-5


@torch.inference_mode()
def test_vectors(golden, weights):
    vae = load_audio_vae(weights)
    assert vae.sample_rate == 51200 and vae.hop == 2048 and vae.config.widths == (4, 4, 8, 16, 32, 64)
    for case in ("enc6144", "enc4873"):
        sound = golden[case + ".audio_mono"].expand(1, 2, -1)
        close(vae.encode(sound), golden[case + ".mean"])
        mean, std = vae.posterior(sound)
        close(mean + golden[case + ".eps"] * std, golden[case + ".latents"])
    close(vae.encode(golden["enc_stereo.audio"]), golden["enc_stereo.pre_bottleneck"][:, :64])
    for case in ("dec2", "dec5"):
        close(vae.decode(golden[case + ".latents"][None]), golden[case + ".audio"])


def test_real_keys_and_shapes():
    stored = real_model("audio_vae")
    wanted = {"pretransform.model." + key: value for key, value in stored.items()}
    inside = official_keys(wanted | {"conditioner.encoder.layers.0.weight": torch.empty(3)})
    assert set(inside) == set(stored)
    weights = folded(inside)
    config = AudioVAEConfig.from_shapes({key: weights.shape(key) for key in weights}, "real")
    assert config == AudioVAEConfig(decoder_widths=AudioVAEConfig().widths)


@pytest.mark.parametrize("strides", [(2, 4), (8, 2), (2, 2, 2)])
@torch.inference_mode()
def test_tiles_equal_one_pass_and_no_context_is_wasted(strides, monkeypatch):
    config = AudioVAEConfig(tuple(range(4, 5 + len(strides))), strides, 3)
    vae = random_vae(config, dtype=torch.float64)
    sound = torch.randn(1, 2, config.hop * 60 + 5, dtype=torch.float64)
    latent = torch.randn(1, 3, 60, dtype=torch.float64)
    for run, x, context in ((vae.encode, sound, "encoder_context"), (vae.decode, latent, "decoder_context")):
        whole = run(x, tile=1000)
        for tile in (1, 7, 59, 60):
            assert (run(x, tile=tile) - whole).abs().max() < 1e-12
        exact = getattr(audio_vae, context)(config)
        for side in range(2):
            less = [c - (side == i) for i, c in enumerate(exact)]
            with monkeypatch.context() as patch:
                patch.setattr(audio_vae, context, lambda config, less=less: less)
                assert (run(x, tile=7) - whole).abs().max() > 1e-12


@pytest.mark.parametrize("strides", [(5,), (3, 2), (2, 3), (5, 3), (2, 4)])
@torch.inference_mode()
def test_every_latent_that_the_network_makes_is_given(strides):
    config = AudioVAEConfig(tuple(range(4, 5 + len(strides))), strides, 3)
    vae = random_vae(config, dtype=torch.float64)
    for length in range(config.hop, 6 * config.hop + 1):
        sound = torch.randn(1, 2, length, dtype=torch.float64)
        whole = vae.encoder(sound)[:, :3]
        assert config.latents(length) == whole.shape[-1]
        assert (vae.encode(sound, tile=2) - whole).abs().max() < 1e-12
    assert vae.encode_long(sound[..., : config.hop + 1]).shape[-1] == 2





def recorded_encoder(sound):
    """The stand-in with which the vectors were made: three plain statistics per latent."""
    frames = sound[0, :, :sound.shape[-1] // 2048 * 2048].unflatten(-1, (-1, 2048))           # [2, n, 2048]
    return torch.stack((frames[0].mean(-1), frames[0, :, 0], frames[0, :, 1024] * frames[1, :, 5]))[None]


def test_long_sound_vectors():
    case = json.loads((DATA / "helpers" / "audio_chunking.json").read_text())
    expected = load_file(DATA / "helpers" / "audio_chunking.safetensors")
    for index, row in enumerate(case["rows"]):
        i = torch.arange(row["samples"], dtype=torch.float64)
        sound = (torch.sin(0.0007 * i) + 0.25 * torch.sin(0.000031 * i)).float().expand(1, 2, -1)
        if row["seconds_arg"]:
            sound = sound[..., :row["seconds_arg"] * 51200]
        calls = []

        def encode(window, calls=calls):
            calls.append(list(window.shape[1:]))
            return recorded_encoder(window)

        latent = encode_in_windows(encode, sound, 2048, 29 * 51200)
        assert calls == row["encode_call_shapes"]
        assert latent.shape == expected[f"c{index}.out"].shape
        assert torch.allclose(latent, expected[f"c{index}.out"], atol=1e-5, rtol=0)


def test_merge_overlap_vectors():
    cases = json.loads((DATA / "helpers" / "merge_overlap.json").read_text())["rows"]
    tensors = load_file(DATA / "helpers" / "merge_overlap.safetensors")
    for index, case in enumerate(cases):
        windows = list(tensors[f"m{index}.chunks"].transpose(-1, -2))              # n times [1, dim, frames]
        merged = merge_overlap(windows, case["overlap_ratio"])
        expected = tensors[f"m{index}.merged"].transpose(-1, -2)
        assert merged.shape == expected.shape
        assert torch.allclose(merged, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("widths", "overlap"), [((), 0.5), ((4, 5), 0.5), ((4,), 1.0)])
def test_merge_overlap_refuses(widths, overlap):
    with pytest.raises(InputError, match=r"overlap|windows"):
        merge_overlap([torch.ones(1, width) for width in widths], overlap)


@torch.inference_mode()
def test_encode_long_pads_at_the_end_and_goes_on_to_the_end_in_one_pass(monkeypatch):
    vae = random_vae(SMALL)
    sound = torch.randn(1, 2, 5 * SMALL.hop + 3)
    latent = vae.encode_long(sound)
    assert latent.shape == (1, 3, 6)
    assert torch.equal(latent, vae.encode(torch.nn.functional.pad(sound, (0, SMALL.hop - 3))))
    assert vae.encode_long(sound[..., :1]).shape == (1, 3, 1)
    monkeypatch.setattr(AudioVAE, "sample_rate", 8)                # so that 29 s are 29 latents
    sound = torch.randn(1, 2, 100 * SMALL.hop)
    assert torch.equal(vae.encode_long(sound), vae.encode(sound))  # in one pass, in step with the video to the end


def test_official_keys_are_written_from_folded_weights_and_from_those_in_training(weights, tmp_path):
    prefix = "pretransform.model."
    save_file({prefix + key: value for key, value in weights.items()} | {"other": torch.ones(1)},
              tmp_path / "model.safetensors")
    vae = load_audio_vae(tmp_path / "model.safetensors")
    assert all(not key.endswith(("_g", "_v")) for key in vae.state_dict())
    written = official_state_dict(vae)
    assert {k: v.shape for k, v in written.items()} == {k: v.shape for k, v in weights.items()}
    trained = weight_normed(AudioVAE(vae.config))
    trained.load_state_dict(weights)  # torch takes the older names for its own
    back = official_state_dict(trained)
    assert set(back) == set(weights) and all(torch.equal(back[key], weights[key]) for key in weights)
    latent = torch.randn(1, 64, 2)
    with torch.inference_mode():
        expected = vae.decode(latent)
        assert torch.allclose(load_audio_vae(written).decode(latent), expected, atol=1e-4)
        assert torch.allclose(trained.decode(latent), expected, atol=1e-4)


def test_newer_names_of_weight_norm(weights):
    new = {key.replace(".weight_g", ".parametrizations.weight.original0")
              .replace(".weight_v", ".parametrizations.weight.original1"): value
           for key, value in weights.items()}
    expected = load_audio_vae(weights).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in load_audio_vae(new).state_dict().items())


@pytest.mark.parametrize("prepare", [lambda vae: vae, weight_normed])
def test_gradients_reach_every_weight_and_training_gives_what_inference_gives(prepare):
    vae = prepare(random_vae(SMALL))
    sound = torch.randn(1, 2, 12 * SMALL.hop)
    mean, std = vae.posterior(sound)
    result = vae.decode(mean + std)
    result.square().mean().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    with torch.inference_mode():
        mean, std = vae.posterior(sound)
        assert torch.allclose(vae.decode(mean + std), result, atol=1e-5)
