"""The fast paths of the video autoencoders against the plain computation: every layout, length and dtype."""

import contextlib
import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from magihuman_core.vae import audio, layers
from magihuman_core.vae.audio import AudioVAE, AudioVAEConfig
from magihuman_core.vae.turbo import Conv, ResNet, TurboVAE, TurboVAEConfig, norm_relu, norm_silu
from magihuman_core.vae.video import VideoVAE, VideoVAEConfig
from magihuman_core.vae.video_blocks import ResidualBlock, UpStage, causal, up_shortcut

TURBO = TurboVAEConfig(latent_channels=5, decoder_block_out_channels=(4, 8, 8, 12),
                       decoder_layers_per_block=(1, 1, 1, 1, 1), first_chunk_size=2, step_size=2)
WAN = VideoVAEConfig(encoder_dim=4, decoder_dim=6, latent_channels=5, multipliers=(1, 2, 2), blocks=1,
                     temporal=(True, False))
SHAPES = [(1, 5, 1, 1, 1), (1, 8, 1, 5, 3), (2, 8, 2, 3, 7), (1, 3, 9, 4, 4), (2, 1, 5, 2, 3)]


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last_3d)


LAYOUTS = {"plain": torch.Tensor.contiguous, "channels": channels_last,
           "cropped": lambda x: channels_last(torch.cat([x, x], dim=2))[:, :, : x.shape[2]],
           "turned": lambda x: x.mT.contiguous().mT}
TOLERANCES = {torch.float32: {"atol": 2e-6, "rtol": 2e-6}, torch.bfloat16: {"atol": 0.02, "rtol": 0.02}}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def weighted(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


@pytest.mark.parametrize(("dtype", "shape", "layout"), list(itertools.product(TOLERANCES, SHAPES, LAYOUTS)))
def test_norm_and_activation_are_what_they_say(dtype, shape, layout):
    x = LAYOUTS[layout](torch.randn(shape).to(dtype))
    wide = x.double()
    normed = wide / (wide.square().mean(1, keepdim=True) + 1e-8).sqrt()
    gamma = torch.randn(shape[1], 1, 1, 1).to(dtype)
    for function, expected in (
        (norm_silu, F.silu(normed)), (norm_relu, F.relu(normed)),
        (partial(layers.channel_norm_silu, gamma=gamma, least=1e-24), F.silu(gamma.double() * F.normalize(wide, dim=1)
                                                                            * shape[1] ** 0.5)),
    ):
        before = x.clone()
        torch.testing.assert_close(function(x).double(), expected, **TOLERANCES[dtype])
        room = layers.room_for(x, shape[2] + 3)
        room.fill_(7)
        function(x, out=room[:, :, 1 : shape[2] + 1])
        torch.testing.assert_close(room[:, :, 1 : shape[2] + 1].double(), expected, **TOLERANCES[dtype])
        assert (room[:, :, 0] == 7).all() and (room[:, :, shape[2] + 1 :] == 7).all() and torch.equal(x, before)
    assert layers.channel_norm_silu(torch.zeros(shape, dtype=dtype), gamma, least=1e-24).abs().max() == 0


@pytest.mark.parametrize("count", [1, 2, 3, 100])
@pytest.mark.parametrize(("shape", "layout"), list(itertools.product(SHAPES, LAYOUTS)))
def test_padding_in_time_repeats_the_ends_in_pieces_of_any_length(monkeypatch, count, shape, layout):
    x = LAYOUTS[layout](torch.randn(shape))
    conv = weighted(Conv(shape[1], 4, (5, 3, 3), operations=nn))
    onto = torch.randn(shape[0], 4, *shape[2:])
    ends = F.silu(x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt())
    ends = torch.cat([ends[:, :, :1]] * 2 + [ends] + [ends[:, :, -1:]] * 2, dim=2)
    expected = F.conv3d(ends, conv.conv.weight, conv.conv.bias, padding=(0, 1, 1))
    monkeypatch.setattr(layers, "PIECE_ELEMENTS", count * x[:, :, 0].numel())
    torch.testing.assert_close(conv(x, norm_silu), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(conv(x, norm_silu, onto=onto.clone()), onto + expected, atol=1e-5, rtol=1e-5)
    with torch.enable_grad():
        torch.testing.assert_close(conv(x, norm_silu, onto=onto), onto + expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [3, 16, layers.WIDE])
def test_convolutions_go_to_the_same_numbers_by_every_path(channels):
    """Small ones, which PyTorch unfolds, and wide ones, which keep PyTorch's own order."""
    conv = weighted(nn.Conv3d(channels, 4, 3, padding=(0, 1, 1)))
    x = torch.randn(1, channels, 3, 4, 5).contiguous(memory_format=torch.channels_last_3d)
    expected = F.conv3d(x.double(), conv.weight.double(), conv.bias.double(), padding=(0, 1, 1)).float()
    scale = expected.abs().max()
    for given in (x, x.contiguous()):
        assert (layers.convolve(conv, given) - expected).abs().max() < 2e-6 * scale
        assert (causal(conv, given[:, :, 2:], {conv: given[:, :, :2]}) - expected).abs().max() < 2e-6 * scale

    class Own(nn.Conv3d):  # as ComfyUI's, which bring their weights when called
        def forward(self, x):
            return super().forward(x) + 1

    own = Own(channels, 4, 3, padding=(0, 1, 1))
    own.load_state_dict(conv.state_dict())
    assert (layers.convolve(own, x) - expected - 1).abs().max() < 2e-6 * scale
    padded = nn.Conv3d(channels, 4, 3, padding="same")
    assert layers.convolve(padded, x).shape == (1, 4, 3, 4, 5)


@pytest.mark.skipif(not layers.has_onednn(), reason="this PyTorch was built without oneDNN")
def test_activations_stay_in_the_order_of_convolutions():
    vae = weighted(TurboVAE(TURBO))
    orders = []

    def note(module, args, out):
        orders.extend(x.is_contiguous(memory_format=torch.channels_last_3d) for x in (args[0], out))

    for module in vae.modules():
        if isinstance(module, ResNet):
            module.register_forward_hook(note)
    vae.decode(torch.randn(1, 5, 3, 2, 3))
    assert len(orders) >= 10 and all(orders)


@pytest.mark.parametrize(("dtype", "batch"), list(itertools.product(TOLERANCES, (1, 2))))
@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_decoders_give_what_the_plain_computation_gives(dtype, batch, frames):
    """With gradients everything is computed plainly: concatenated, out of place, in PyTorch's own order."""
    z = torch.randn(batch, 5, frames, 3, 5).to(dtype).mT.contiguous().mT
    for vae in (weighted(TurboVAE(TURBO, dtype=dtype)), weighted(VideoVAE(WAN, dtype=dtype))):
        with torch.enable_grad():
            expected = vae.decode(z).detach()
        scale = expected.float().abs().max()
        assert (vae.decode(z) - expected).float().abs().max() < (1e-4 if dtype == torch.float32 else 0.1) * scale
        if isinstance(vae, VideoVAE):
            video = expected.clamp(-1, 1).float().contiguous()
            with torch.enable_grad():
                latent = vae.encode(video).detach()
            bound = (1e-4 if dtype == torch.float32 else 0.1) * latent.abs().max()
            assert (vae.encode(video) - latent).abs().max() < bound


@pytest.mark.parametrize("unpatchify", [True, False])
@pytest.mark.parametrize("frames", [1, 6])
def test_frames_that_nobody_wants_are_dropped_without_a_change_to_the_others(frames, unpatchify):
    """In fp64, for which convolutions of other lengths differ in the last bits only."""
    vae = weighted(TurboVAE(replace(TURBO, use_unpatchify=unpatchify), dtype=torch.float64))
    z = torch.randn(2, 5, frames, 2, 1, dtype=torch.float64)
    for first in (True, False):
        whole = vae.decoder(z, first)
        for before, after in ((0, 0), (4, 0), (1, 3), (0, 12), (9, 8), (20, 1)):
            if before + after < whole.shape[2]:
                part = vae.decoder(z, first, (before, after))
                torch.testing.assert_close(part, whole[:, :, before : whole.shape[2] - after], atol=1e-9, rtol=0)


@pytest.mark.parametrize("block", [ResNet(4, 6, depthwise_kernel=0, relu=False, eps=1e-6, operations=nn),
                                   ResidualBlock(4, 6, operations=nn), UpStage(4, 4, 2, last=False, temporal=True,
                                                                               operations=nn)])
def test_what_others_may_hold_is_not_written_into(block):
    """A projected input, and those of the Wan2.2 VAE, whose shortcuts read them again."""
    x = torch.randn(1, 4, 3, 2, 2)
    before = x.clone()
    weighted(block)(x, *{ResNet: (), ResidualBlock: (None,), UpStage: (None, True)}[type(block)])
    assert torch.equal(x, before)


@pytest.mark.parametrize("first", [True, False])
def test_upsampling_shortcut_repeats_channels(first):
    x = torch.randn(2, 4, 3, 2, 1)
    out = up_shortcut(x, 2, 2, 2, first)
    assert out.shape == (2, 2, 5 if first else 6, 4, 2)
    for c, t, row, col in itertools.product(range(2), range(2), range(2), range(2)):
        source = x[:, (c * 8 + t * 4 + row * 2 + col) // 4]
        frames = range(t, 6, 2)
        for i, frame in enumerate(frames):
            if first and frame == 0:
                continue
            assert torch.equal(out[:, c, frame - first, row::2, col::2], source[:, i])


@pytest.mark.parametrize("tile", [None, 3])
def test_frames_are_put_together_where_the_caller_says(tile):
    z = torch.randn(1, 5, 3, 2, 4)
    for vae in (weighted(TurboVAE(TURBO)), weighted(VideoVAE(WAN))):
        expected = vae.decode(z, tile=tile, overlap=1)
        assert torch.equal(vae.decode(z, tile=tile, overlap=1, output_device="cpu"), expected)
        if tile is None:
            assert vae.decode(z, output_device="meta").device.type == "meta"


@pytest.mark.parametrize("newer", [True, False])
def test_audio_is_convolved_in_exact_fp32_and_the_switch_is_put_back(monkeypatch, newer):
    """TF32 exists on CUDA alone, so what is watched is PyTorch's switch."""
    vae = weighted(AudioVAE(AudioVAEConfig(widths=(4, 4), strides=(2,), latent_channels=3)))
    cudnn, seen = torch.backends.cudnn, []
    if newer and not hasattr(cudnn, "conv"):
        pytest.skip("this PyTorch has the older switch only")
    if not newer:
        monkeypatch.setattr(audio.torch.backends, "cudnn", type("Older", (), {"allow_tf32": True}))
    read = (lambda: cudnn.conv.fp32_precision) if newer else (lambda: audio.torch.backends.cudnn.allow_tf32)
    before = read()
    assert before not in ("ieee", False)
    for part in (vae.encoder, vae.decoder):
        part.register_forward_pre_hook(lambda *_: seen.append(read()))
    vae.decode(vae.encode(torch.randn(1, 2, 8)))
    assert seen == (["ieee"] * 2 if newer else [False] * 2) and read() == before
    vae.decoder.register_forward_pre_hook(lambda *_: 1 / 0)
    with contextlib.suppress(ZeroDivisionError):
        vae.decode(torch.randn(1, 3, 2))
    assert read() == before
