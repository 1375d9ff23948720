"""The Wan2.2 VAE against recorded numbers and against diffusers' implementation."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from magihuman_core.errors import CheckpointError, InputError
from magihuman_core.loading.vae import load_video_vae
from magihuman_core.vae.latent_statistics import LATENT_MEAN, LATENT_STD
from magihuman_core.vae.layers import channels_to_pixels, pixels_to_channels
from magihuman_core.vae.video import VideoVAE, VideoVAEConfig

DATA = Path(__file__).parents[1] / "data"
SMALL = VideoVAEConfig(encoder_dim=4, decoder_dim=6, latent_channels=5, multipliers=(1, 2, 2), blocks=1,
                       temporal=(True, False))


def recorded():
    return load_file(DATA / "wan22_vae" / "tiny.safetensors")


def tiny_weights():
    return {k[8:]: v.float() for k, v in recorded().items() if k.startswith("weights.")}


@pytest.fixture(scope="module")
def tiny():
    return load_video_vae(tiny_weights())


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", ["enc_image", "enc_video5"])
@pytest.mark.parametrize("grad", [False, True])
def test_encode_gives_the_recorded_latents(tiny, case, grad):
    t = recorded()
    with torch.set_grad_enabled(grad):
        latent = tiny.encode(t[f"{case}.video"])
        raw = tiny.encode(t[f"{case}.video"], normalized=False)
    torch.testing.assert_close(latent, t[f"{case}.latent"], atol=1e-4, rtol=0)
    torch.testing.assert_close(raw, t[f"{case}.mu_unnormalised"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["dec1", "dec2", "dec3"])
@pytest.mark.parametrize("grad", [False, True])
def test_decode_gives_the_recorded_frames(tiny, case, grad):
    t = recorded()
    expected = t[f"{case}.video_unclamped"]
    with torch.set_grad_enabled(grad):
        video = tiny.decode(t[f"{case}.latent"])
        raw = tiny.statistics.denormalize(t[f"{case}.latent"])
        unclamped = tiny.frames(raw)
    torch.testing.assert_close(video, expected.clamp(-1, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(unclamped, expected, atol=1e-4, rtol=0)
    assert expected.abs().max() > 1 >= video.abs().max()
    torch.testing.assert_close(tiny.decode(raw, normalized=False), video, atol=1e-4, rtol=0)


def test_latent_statistics_are_the_recorded_ones():
    t = recorded()
    torch.testing.assert_close(torch.tensor(LATENT_MEAN), t["mean"], atol=0, rtol=0)
    torch.testing.assert_close(torch.tensor(LATENT_STD), t["std"], atol=0, rtol=0)


def original_name(key):
    """The original checkpoint's name for one of diffusers' keys."""
    key = re.sub(r"^quant_conv\.", "conv1.", re.sub(r"^post_quant_conv\.", "conv2.", key))
    key = key.replace("coder.conv_in.", "coder.conv1.").replace("mid_block.attentions.0.", "middle.1.")
    key = key.replace("mid_block.resnets.0.", "middle.0.").replace("mid_block.resnets.1.", "middle.2.")
    key = key.replace("norm_out.", "head.0.").replace("conv_out.", "head.2.")
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"downsamples.\1.downsamples.", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets\.", r"upsamples.\1.upsamples.", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsampler\.", r"downsamples.\1.downsamples.2.", key)
    key = re.sub(r"up_blocks\.(\d+)\.upsampler\.", r"upsamples.\1.upsamples.3.", key)
    inside = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6",
              "conv_shortcut": "shortcut"}
    for theirs, ours in inside.items():
        key = re.sub(rf"((?:downsamples|upsamples|middle)\.[\d.a-z]*?\d)\.{theirs}\.", rf"\1.{ours}.", key)
    return key


def test_diffusers_computes_the_same():
    wan = pytest.importorskip("diffusers").AutoencoderKLWan(
        base_dim=4, decoder_base_dim=6, z_dim=7, dim_mult=[1, 2, 4, 4], num_res_blocks=2, patch_size=2,
        temperal_downsample=[False, True, True], is_residual=True, in_channels=12, out_channels=12,
        latents_mean=[0.0] * 7, latents_std=[1.0] * 7, scale_factor_spatial=16,
    ).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in wan.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    vae = load_video_vae({original_name(key): value.detach() for key, value in wan.state_dict().items()})
    video, z = random(1, 3, 9, 32, 48).clamp(-1, 1), random(1, 7, 4, 2, 3, seed=1)
    with torch.no_grad():
        expected = wan.encode(video).latent_dist.mean
        atol = 1e-4 * expected.abs().max().item()
        torch.testing.assert_close(vae.encode(video), expected, atol=atol, rtol=1e-3)
        torch.testing.assert_close(vae.decode(z), wan.decode(z).sample, atol=1e-3, rtol=1e-3)


def test_patches_put_column_before_row_and_come_back():
    x = random(1, 3, 2, 4, 6)
    y = pixels_to_channels(x, 2)
    for c, col, row in ((0, 0, 1), (1, 1, 0), (2, 1, 1)):
        assert torch.equal(y[:, 4 * c + 2 * col + row, :, 1, 2], x[:, c, :, 2 + row, 4 + col])
    torch.testing.assert_close(channels_to_pixels(y, 2), x, atol=0, rtol=0)


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
def test_tiles_blend_into_the_whole_picture(tiny):
    z = random(1, 48, 2, 5, 3)
    whole = tiny.decode(z)
    assert tiny.decode(z, tile=4, overlap=2).shape == whole.shape
    torch.testing.assert_close(tiny.decode(z, tile=5, overlap=2), whole, atol=0, rtol=0)


@torch.inference_mode()
def test_bf16_network_stays_close_and_keeps_the_dtype_of_its_input(tiny):
    rounded = load_video_vae(tiny_weights(), dtype=torch.bfloat16)
    video = random(1, 3, 5, 32, 32).clamp(-1, 1)
    exact = tiny.encode(video)
    latent = rounded.encode(video)
    assert latent.dtype == torch.float32
    assert (latent - exact).norm() / exact.norm() < 0.03
    exact = tiny.decode(latent)
    frames = rounded.decode(latent)
    assert frames.dtype == torch.float32
    assert (frames - exact).norm() / exact.norm() < 0.05


def test_gradients_reach_the_input_and_every_weight(tiny):
    vae = load_video_vae(tiny_weights()).requires_grad_(True)
    video = random(1, 3, 9, 16, 16).requires_grad_(True)
    mean, log_variance = vae.moments(video)
    assert log_variance.shape == mean.shape
    (vae.frames(mean).square().mean() + log_variance.square().mean()).backward()
    assert video.grad.abs().sum() > 0
    assert [key for key, p in vae.named_parameters()
            if p.grad is None or not p.grad.isfinite().all() or p.grad.abs().sum() == 0] == []


def test_gradients_pass_through_the_pieces_too():
    vae = VideoVAE(SMALL)
    video = random(1, 3, 5, 8, 8).requires_grad_(True)
    vae.decode(vae.encode(video)).square().mean().backward()
    assert video.grad.abs().sum() > 0


def test_real_network_has_exactly_the_real_keys_and_shapes():
    real = json.loads((DATA / "real_config" / "wan22_vae_keys.json").read_text())
    expected = {key: tuple(entry["shape"]) for key, entry in real["keys"].items()}
    with torch.device("meta"):
        vae = VideoVAE()
    assert {key: tuple(value.shape) for key, value in vae.state_dict().items()} == expected
    assert sum(p.numel() for p in vae.parameters()) == real["num_params"]


def test_real_sizes_are_inferred_from_shapes():
    keys = json.loads((DATA / "real_config" / "wan22_vae_keys.json").read_text())["keys"]
    shapes = {key: tuple(entry["shape"]) for key, entry in keys.items()}
    assert VideoVAEConfig.from_shapes(shapes, "real") == VideoVAEConfig()


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


def test_weights_are_made_by_the_injected_operations():
    made = []

    def counted(layer):
        return lambda *args, **kwargs: made.append(layer) or layer(*args, **kwargs)

    operations = SimpleNamespace(Conv2d=counted(torch.nn.Conv2d), Conv3d=counted(torch.nn.Conv3d))
    load_video_vae(tiny_weights(), operations=operations)
    assert len(made) == sum(key.endswith(".weight") for key in tiny_weights())
    vae = VideoVAE(SMALL, dtype=torch.bfloat16, device="meta")
    assert {(p.dtype, p.device.type) for p in vae.parameters()} == {(torch.bfloat16, "meta")}


@pytest.mark.parametrize("shape", [(1, 4, 1, 16, 16), (3, 1, 16, 16), (1, 3, 0, 16, 16)])
def test_videos_of_another_kind_are_refused(tiny, shape):
    with pytest.raises(InputError, match=r"\[B, 3, F, height, width\]"):
        tiny.encode(torch.zeros(shape))


def test_sizes_that_16_does_not_divide_are_refused(tiny):
    with pytest.raises(InputError, match=r"24x16 pixels.*multiples of 16"):
        tiny.encode(torch.zeros(1, 3, 1, 16, 24))


@pytest.mark.parametrize("shape", [(1, 16, 2, 2, 2), (48, 2, 2, 2), (1, 48, 0, 2, 2)])
def test_latents_of_another_kind_are_refused(tiny, shape):
    with pytest.raises(InputError, match=r"\[B, 48, T, H, W\]"):
        tiny.decode(torch.zeros(shape))


@pytest.mark.parametrize("tensors", [
    {"decoder.conv_in.conv.weight": torch.ones(2)},  # a Turbo VAE
    {"encoder.conv1.weight": torch.ones(96, 3, 3, 3, 3)},  # Wan2.1: flat downsamples
    {},
])
def test_another_models_file_is_refused(tensors):
    with pytest.raises(CheckpointError, match=r"not a Wan2\.2-type video VAE"):
        load_video_vae(tensors)


def test_incomplete_weights_are_refused():
    tensors = tiny_weights()
    del tensors["decoder.upsamples.1.upsamples.1.residual.3.gamma"]
    with pytest.raises(CheckpointError, match=r"residual\.3\.gamma"):
        load_video_vae(tensors)
    with pytest.raises(CheckpointError, match="unexpected"):
        load_video_vae({**tiny_weights(), "quant.weight": torch.ones(1)})
    tensors = {**tiny_weights(), "encoder.conv1.weight": torch.ones(3, 12, 3, 3, 3)}
    with pytest.raises(CheckpointError):
        load_video_vae(tensors)
