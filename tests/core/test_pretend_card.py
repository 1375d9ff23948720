"""The real sizes on a card that is not there: no operation mixes devices, and estimates of memory hold."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from magihuman_core.model.config import RELEASED
from magihuman_core.nn.quantized_linear import NarrowLinear
from magihuman_core.recipes import BASE, SR_540P, SR_1080P
from magihuman_core.runtime.build import build_dit, build_text_encoder
from magihuman_core.runtime.lora import Delta, LinearHook
from magihuman_core.runtime.memory import decoding_activations, encoding_activations, estimate
from magihuman_core.sizes import audio_length, latent_frames
from magihuman_core.text.config import TextEncoderConfig
from magihuman_core.vae.audio import AudioVAE, AudioVAEConfig
from magihuman_core.vae.turbo import TurboVAE, TurboVAEConfig
from magihuman_core.vae.video import VideoVAE, VideoVAEConfig

from .pretend_card import PretendCard

CLOSE = {"rel": 0.05}
SIZES = {"256p": BASE, "540p": SR_540P, "1080p": SR_1080P}
BF16, INT8, FP8 = torch.bfloat16, torch.int8, torch.float8_e4m3fn


def some_blocks(config, first=5, last=1):
    """One block of each kind of the first and the last blocks: what is alive at once does not depend on how many there
    are."""
    kinds = {}
    for layer in (*range(first), *range(config.layers - last, config.layers)):
        kinds.setdefault(tuple(layer in of for of in (config.sandwich_layers, config.gelu_layers, config.local_layers,
                                                      config.post_norm_layers)), layer)
    kept = {old: new for new, old in enumerate(kinds.values())}

    def renumbered(layers):
        return tuple(kept[layer] for layer in layers if layer in kept)

    return replace(config, layers=len(kept), sandwich_layers=renumbered(config.sandwich_layers),
                   gelu_layers=renumbered(config.gelu_layers), local_layers=renumbered(config.local_layers),
                   post_norm_layers=renumbered(config.post_norm_layers))


@pytest.mark.parametrize(("size", "seconds", "dtype", "guided", "whole"), [
    ("256p", 5, BF16, False, True), ("256p", 5, BF16, True, False), ("256p", 10, INT8, True, False),
    ("540p", 5, BF16, False, False), ("540p", 10, FP8, False, False),
    ("1080p", 5, BF16, False, False), ("1080p", 5, INT8, False, False), ("1080p", 10, BF16, False, False),
])  # fmt: skip
def test_network(size, seconds, dtype, guided, whole):
    recipe, length = SIZES[size], audio_length(seconds)
    config = replace(RELEASED, **recipe.overrides(40))
    config = config if whole else some_blocks(config)
    expected = estimate(config, width=recipe.width, height=recipe.height, seconds=seconds, dtype=dtype, guided=guided)
    with PretendCard() as card:
        dit = card.load(build_dit(config, dtype))
        if whole:
            assert sum(parameter.numel() for parameter in dit.parameters()) == pytest.approx(15.3e9, rel=0.01)
        assert card.weights(dit) == pytest.approx(expected.weights, rel=0.001)
        outs = []

        def run():
            clip = (card.empty(1, 48, latent_frames(length), recipe.height // 16, recipe.width // 16),
                    card.empty(1, 64, length), card.empty(1, 640, 3584))
            outs.extend(dit.forward_many([clip] * (1 + guided)))
            assert all(out.shape == x.shape and out.device == x.device for pair in outs
                       for out, x in zip(pair, clip, strict=False))

        assert card.peak(run) == pytest.approx(expected.activations, **CLOSE)


@pytest.mark.parametrize("size", ["256p", "540p"])
@pytest.mark.parametrize("dtype", [BF16, INT8])
@pytest.mark.parametrize("magnitude", [False, True])
def test_a_lora_of_every_layer_needs_little_beside_the_network(size, dtype, magnitude):
    """DoRA also while its factors are found, in the first pass. Its own weights are counted where it is loaded."""
    recipe = SIZES[size]
    config = some_blocks(replace(RELEASED, **recipe.overrides(40)))
    expected = estimate(config, width=recipe.width, height=recipe.height, seconds=5, dtype=dtype)
    with PretendCard() as card:
        dit = card.load(build_dit(config, dtype))
        for name, layer in dit.named_modules():
            if isinstance(layer, nn.Linear | NarrowLinear) and name.startswith("blocks."):
                rows, columns = layer.weight.shape
                delta = Delta(slice(None), card.empty(rows, 64, dtype=BF16), card.empty(64, columns, dtype=BF16), 0.5,
                              card.empty(rows) if magnitude else None)
                layer.register_forward_hook(LinearHook(delta, 0.8))
        clip = (card.empty(1, 48, latent_frames(126), recipe.height // 16, recipe.width // 16),
                card.empty(1, 64, 126), card.empty(1, 640, 3584))
        assert card.peak(lambda: dit(*clip)) < expected.activations + 50_000_000


@pytest.mark.parametrize(("vae", "config", "size", "seconds", "tile"), [
    (TurboVAE, TurboVAEConfig(), "256p", 5, None), (TurboVAE, TurboVAEConfig(), "540p", 10, None),
    (TurboVAE, TurboVAEConfig(), "1080p", 5, None), (TurboVAE, TurboVAEConfig(), "1080p", 1.2, 40),
    (VideoVAE, VideoVAEConfig(), "256p", 1.2, None), (VideoVAE, VideoVAEConfig(), "540p", 1, None),
    (VideoVAE, VideoVAEConfig(), "1080p", 1, None),
])  # fmt: skip
def test_video_decoders(vae, config, size, seconds, tile):
    recipe, length = SIZES[size], audio_length(seconds)
    options = {} if tile is None else {"tile": tile}
    expected = estimate(config, width=recipe.width, height=recipe.height, seconds=seconds, dtype=BF16, **options)
    shape = 1, 48, latent_frames(length), recipe.height // 16, recipe.width // 16
    with PretendCard() as card:
        decoder = card.load(vae(config, dtype=BF16, device="meta").eval())
        assert card.weights(decoder) == pytest.approx(expected.weights, rel=0.001)
        frames = []

        def run():
            for window in decoder.decode_windows(card.empty(*shape), **options):
                frames.append(window.shape[2])
                assert window.device.type == ("cuda" if tile is None else "cpu")
                assert window.shape[3:] == (recipe.height, recipe.width)

        found = card.peak(run)
        assert sum(frames) == 4 * shape[2] - 3
        assert found == pytest.approx(expected.activations, **CLOSE)
    if tile is None:  # what ComfyUI is told
        assert found == pytest.approx(decoding_activations(config, shape, BF16, "cuda"), **CLOSE)


@pytest.mark.parametrize(("size", "frames", "dtype"), [("256p", 1, torch.float32), ("1080p", 1, torch.float32),
                                                       ("540p", 33, BF16)])
def test_video_encoder(size, frames, dtype):
    recipe = SIZES[size]
    shape = 1, 3, frames, recipe.height, recipe.width
    with PretendCard() as card:
        vae = card.load(VideoVAE(VideoVAEConfig(), dtype=dtype, device="meta").eval())
        found = card.peak(lambda: vae.encode(card.empty(*shape, dtype=dtype)))
    assert found == pytest.approx(encoding_activations(VideoVAEConfig(), shape, dtype, "cuda"), **CLOSE)


@pytest.mark.parametrize("seconds", [5, 10])
def test_audio_vae(seconds):
    config, length = AudioVAEConfig(), audio_length(seconds)
    expected = estimate(config, seconds=seconds, dtype=torch.float32)
    samples = 1, 2, seconds * 51200
    with PretendCard() as card:
        vae = card.load(AudioVAE(config, dtype=torch.float32, device="meta").eval())
        assert card.weights(vae) == pytest.approx(expected.weights, rel=0.001)
        assert card.peak(lambda: vae.decode(card.empty(1, 64, length))) == pytest.approx(expected.activations, **CLOSE)
        found = card.peak(lambda: vae.encode_long(card.empty(*samples)))
    assert found == pytest.approx(encoding_activations(config, samples, torch.float32, "cuda"), **CLOSE)


@pytest.mark.parametrize("dtype", [BF16, INT8])
def test_text_encoder(dtype):
    config = TextEncoderConfig()
    expected = estimate(config, dtype=dtype)
    with PretendCard() as card:
        encoder = card.load(build_text_encoder(config, dtype).eval())
        assert card.weights(encoder) == pytest.approx(expected.weights, rel=0.001)
        found = card.peak(lambda: encoder(card.empty(1, 640, dtype=torch.long)))
    assert found == pytest.approx(expected.activations, **CLOSE)


class Spoilt(TorchFunctionMode):
    """An attention that leaves its result on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out.cpu() if func is torch.nn.functional.scaled_dot_product_attention else out


def test_mixed_devices_and_memory_that_is_held_are_noticed():
    config = some_blocks(RELEASED, 1, 0)
    with PretendCard() as card:
        dit = card.load(build_dit(config, BF16))
        clip = card.empty(1, 48, 2, 4, 4), card.empty(1, 64, 5), card.empty(1, 8, 3584)
        with pytest.raises(RuntimeError, match="device"), Spoilt():
            dit(*clip)
        down = dit.blocks[0].experts["video"].mlp.down_proj
        down.weight = torch.nn.Parameter(torch.empty(down.weight.shape, dtype=BF16), requires_grad=False)
        with pytest.raises(RuntimeError, match="device"):
            dit(*clip)
        held = []

        def run():
            for _ in range(3):
                held.append(card.empty(1000) + 1)
            del held[:]
            held.append(card.empty(500).reshape(50, 10)[3:].t())  # a view holds its whole storage

        assert card.peak(run) == 4 * 4000  # three, and what the last is made of
        assert card.peak(lambda: held[0] + 1) == 4 * 470
