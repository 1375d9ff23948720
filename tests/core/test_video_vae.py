"""The Wan2.2 VAE against recorded numbers. Against diffusers' implementation: test_weights_diffusers.py."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from magihuman_core.loading.vae import load_video_vae
from magihuman_core.vae.video import VideoVAE, VideoVAEConfig

from .golden import DATA, load_small

SMALL = VideoVAEConfig(encoder_dim=4, decoder_dim=6, latent_channels=5, multipliers=(1, 2, 2), blocks=1,
                       temporal=(True, False))


@pytest.fixture(scope="module")
def t():
    return load_file(DATA / "wan22_vae" / "tiny.safetensors")


@pytest.fixture(scope="module")
def tiny():
    return load_small("video_vae", dtype=torch.float32)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", ["enc_image", "enc_video5"])
@pytest.mark.parametrize("grad", [False, True])
def test_encode_gives_the_recorded_latents(tiny, t, case, grad):
    with torch.set_grad_enabled(grad):
        latent = tiny.encode(t[f"{case}.video"])
        raw = tiny.encode(t[f"{case}.video"], normalized=False)
    torch.testing.assert_close(latent, t[f"{case}.latent"], atol=1e-4, rtol=0)
    torch.testing.assert_close(raw, t[f"{case}.mu_unnormalised"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["dec1", "dec2", "dec3"])
@pytest.mark.parametrize("grad", [False, True])
def test_decode_gives_the_recorded_frames(tiny, t, case, grad):
    expected = t[f"{case}.video_unclamped"]
    with torch.set_grad_enabled(grad):
        video = tiny.decode(t[f"{case}.latent"])
        raw = tiny.statistics.denormalize(t[f"{case}.latent"])
        unclamped = tiny.frames(raw)
    torch.testing.assert_close(video, expected.clamp(-1, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(unclamped, expected, atol=1e-4, rtol=0)
    assert expected.abs().max() > 1 >= video.abs().max()
    torch.testing.assert_close(tiny.decode(raw, normalized=False), video, atol=1e-4, rtol=0)


@pytest.mark.parametrize("grad", [False, True])
def test_piece_by_piece_equals_the_whole_clip_at_once(tiny, grad):
    video, z = random(1, 3, 13, 16, 32), random(1, 48, 4, 1, 2)
    with torch.set_grad_enabled(grad):
        whole = tiny.moments(video)[0]
        torch.testing.assert_close(tiny.encode(video, normalized=False), whole, atol=1e-4, rtol=0)
        whole = tiny.frames(z).clamp(-1, 1)
        torch.testing.assert_close(tiny.decode(z, normalized=False), whole, atol=1e-4, rtol=0)
    pieces = list(tiny.decode_windows(z, normalized=False))
    assert [piece.shape[2] for piece in pieces] == [1, 4, 4, 4]
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("frames", range(1, 10))
def test_frame_counts(tiny, frames):
    video = random(1, 3, frames, 16, 16)
    latent = tiny.encode(video)
    latents = 1 + (frames - 1) // 4
    assert latent.shape == (1, 48, latents, 1, 1)
    # Frames that do not fill a group of four are dropped.
    torch.testing.assert_close(latent, tiny.encode(video[:, :, : 4 * latents - 3]), atol=0, rtol=0)
    assert tiny.decode(latent).shape == (1, 3, 4 * latents - 3, 16, 16)


def test_the_future_never_changes_the_past(tiny):
    video = random(1, 3, 9, 16, 16)
    changed = video.clone()
    changed[:, :, 5:] += 1
    first, second = tiny.encode(video), tiny.encode(changed)
    torch.testing.assert_close(first[:, :, :2], second[:, :, :2], atol=0, rtol=0)
    assert (first[:, :, 2] - second[:, :, 2]).abs().max() > 1e-3


def test_batch_and_portrait(tiny):
    video = random(2, 3, 5, 32, 16)
    both = tiny.encode(video)
    torch.testing.assert_close(both, torch.cat([tiny.encode(v[None]) for v in video]), atol=1e-5, rtol=0)
    each = torch.cat([tiny.decode(latent[None]) for latent in both])
    torch.testing.assert_close(tiny.decode(both), each, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_tiles_blend_into_the_whole_image(tiny):
    """Attention spans an image, so a tile differs from the same place of the whole: the measure is the tiles' own."""
    z = random(1, 48, 2, 5, 3)
    tiled = tiny.decode(z, tile=4, overlap=2)
    upper, lower = tiny.decode(z[..., :4, :]), tiny.decode(z[..., 1:, :])
    assert tiled.shape == (1, 3, 5, 80, 48)
    torch.testing.assert_close(tiled[..., :16, :], upper[..., :16, :], atol=1e-6, rtol=0)
    torch.testing.assert_close(tiled[..., 64:, :], lower[..., 48:, :], atol=1e-6, rtol=0)
    low, high = torch.stack([upper[..., 16:, :], lower[..., :48, :]]).aminmax(dim=0)
    assert (tiled[..., 16:64, :] >= low - 1e-6).all() and (tiled[..., 16:64, :] <= high + 1e-6).all()
    torch.testing.assert_close(tiny.decode(z, tile=5, overlap=2), tiny.decode(z), atol=0, rtol=0)


@torch.inference_mode()
def test_tiles_of_a_long_clip_come_in_parts_with_the_same_numbers(tiny, monkeypatch):
    z = random(1, 48, 7, 5, 6)
    [whole] = tiny.decode_windows(z, tile=4, overlap=2)
    monkeypatch.setattr("magihuman_core.vae.video.TILED_LENGTH", 3)
    parts = list(tiny.decode_windows(z, tile=4, overlap=2))
    assert [part.shape[2] for part in parts] == [9, 12, 4]
    assert torch.equal(torch.cat(parts, 2), whole) and torch.equal(tiny.decode(z, tile=4, overlap=2), whole)


def test_gradients_reach_the_input_and_every_weight(tiny):
    vae = load_small("video_vae", dtype=torch.float32).requires_grad_(True)
    video = random(1, 3, 9, 16, 16).requires_grad_(True)
    mean, log_variance = vae.moments(video)
    assert log_variance.shape == mean.shape
    (vae.frames(mean).square().mean() + log_variance.square().mean()).backward()
    assert video.grad.abs().sum() > 0
    through_pieces = random(1, 3, 5, 16, 16).requires_grad_(True)
    vae.decode(vae.encode(through_pieces)).square().mean().backward()
    assert through_pieces.grad.abs().sum() > 0
    assert [key for key, p in vae.named_parameters()
            if p.grad is None or not p.grad.isfinite().all() or p.grad.abs().sum() == 0] == []





def test_any_width_loads_and_round_trips(tmp_path):
    vae = VideoVAE(SMALL)
    save_file(vae.state_dict(), tmp_path / "small.safetensors")
    loaded = load_video_vae(tmp_path / "small.safetensors")
    assert loaded.config == SMALL
    video = random(1, 3, 5, 16, 8)
    latent = loaded.encode(video)
    assert latent.shape == (1, 5, 3, 2, 1)  # twice in time, 8 in space
    torch.testing.assert_close(latent, vae.encode(video, normalized=False), atol=0, rtol=0)
    assert loaded.decode(latent).shape == (1, 3, 5, 16, 8)
    mean, std = torch.arange(5.0), torch.arange(5.0) + 1
    own = load_video_vae({**vae.state_dict(), "latent_mean": mean, "latent_std": std})
    expected = (latent - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(own.encode(video), expected)
