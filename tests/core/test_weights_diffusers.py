"""VAEs as diffusers saves them: the same results as diffusers' own."""

import pytest
import torch

from magihuman_core import load_audio_vae, load_video_vae
from magihuman_core.tools.inspect import describe
from magihuman_core.vae.audio import AudioVAEConfig
from magihuman_core.weights.open import open_checkpoint
from magihuman_core.weights.recognize import recognize

diffusers = pytest.importorskip("diffusers")


def scattered(module: torch.nn.Module) -> torch.nn.Module:
    """Other values than the initial ones, many of which are alike."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in module.named_parameters():
        if not name.endswith("weight_v"):
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


@pytest.mark.parametrize("blocks", [1, 2])
@torch.inference_mode()
def test_the_video_vae(blocks, tmp_path):
    wan = scattered(diffusers.AutoencoderKLWan(
        base_dim=4, decoder_base_dim=6, z_dim=7, dim_mult=[1, 2, 4, 4], num_res_blocks=blocks, patch_size=2,
        temperal_downsample=[False, True, True], is_residual=True, in_channels=12, out_channels=12,
        latents_mean=[0.0] * 7, latents_std=[1.0] * 7, scale_factor_spatial=16,
    ))  # fmt: skip
    wan.save_pretrained(tmp_path / "model" / "vae")
    vae = load_video_vae(tmp_path / "model")
    video = torch.rand(1, 3, 9, 32, 48) * 2 - 1
    expected = wan.encode(video).latent_dist.mean
    torch.testing.assert_close(vae.encode(video), expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)
    z = torch.randn(1, 7, 4, 2, 3)
    torch.testing.assert_close(vae.decode(z), wan.decode(z).sample, atol=1e-3, rtol=1e-3)
    found = recognize(open_checkpoint(tmp_path / "model" / "vae", raw=True))
    assert (found.kind, found.layout) == ("video_vae", "diffusers' names")
    assert "problem" not in describe(tmp_path / "model")


@pytest.mark.parametrize("strides", [[2, 4], [2, 4, 4]])
@torch.inference_mode()
def test_the_audio_vae(strides, tmp_path):
    oobleck = scattered(diffusers.AutoencoderOobleck(
        encoder_hidden_size=10, downsampling_ratios=strides, channel_multiples=[1, 2, 3][: len(strides)],
        decoder_channels=6, decoder_input_channels=5, audio_channels=2,
    ))  # fmt: skip
    oobleck.save_pretrained(tmp_path)
    vae = load_audio_vae(tmp_path)
    n = len(strides) + 1
    assert vae.config == AudioVAEConfig((10, 10, 20, 30)[:n], tuple(strides), 5, 2, (6, 6, 12, 18)[:n])
    sound, latent = torch.randn(2, 2, 32 * 7 + 5), torch.randn(2, 5, 9)
    expected = oobleck.encode(sound).latent_dist
    for ours, theirs in zip(vae.posterior(sound), (expected.mean, expected.std), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(vae.decode(latent), oobleck.decode(latent).sample, atol=1e-4, rtol=1e-4)
    found = recognize(open_checkpoint(tmp_path, raw=True))
    assert (found.kind, found.layout) == ("audio_vae", "diffusers' names")
    assert "problem" not in describe(tmp_path)
