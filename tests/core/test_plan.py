"""How parts are run on cards of every size: nothing is planned that is larger than what is free."""

from dataclasses import replace

import pytest
import torch

from magihuman_core.model.config import RELEASED
from magihuman_core.recipes import BASE, SR_1080P
from magihuman_core.runtime.build import on_meta
from magihuman_core.runtime.dry_run import dry_run
from magihuman_core.runtime.memory import decoding_activations, estimate
from magihuman_core.runtime.plan import log_plan, plan_blocks, plan_decoding, smaller_tile, usable
from magihuman_core.text.config import TextEncoderConfig
from magihuman_core.vae.audio import AudioVAEConfig
from magihuman_core.vae.turbo import TurboVAEConfig
from magihuman_core.vae.video import VideoVAEConfig

from .test_memory import AUDIO, NETWORK, TEXT, TURBO, VIDEO

OVERHEAD = 0.8e9  # what CUDA itself and a desktop take of a card
CLIP = {"width": 1920, "height": 1088, "seconds": 5}
UPSCALER = replace(RELEASED, **SR_1080P.overrides(RELEASED.layers))
FP8 = torch.float8_e4m3fn
PARTS = {
    "text encoder": lambda free: plan_blocks(TextEncoderConfig(), free, text_tokens=640),
    "base network": lambda free: plan_blocks(RELEASED, free, seconds=5, guided=BASE.guidance is not None),
    "1080p network": lambda free: plan_blocks(UPSCALER, free, **CLIP),
    "1080p network, fp8": lambda free: plan_blocks(UPSCALER, free, **CLIP, dtype=FP8),
    "Turbo VAE": lambda free: plan_decoding(TurboVAEConfig(), free, **CLIP),
    "video VAE": lambda free: plan_decoding(VideoVAEConfig(), free, **CLIP),
    "audio VAE": lambda free: estimate(AudioVAEConfig(), seconds=5, dtype=torch.float32),
}
# GB of a card -> what is planned: blocks or layers that stay, or the tile; None: all, or whole frames. Published
# sizes of tensors give the same: a block in bf16 is 0.55 GB, one of the sandwich 1.6 GB, a layer of text 0.4 GB.
PLANS = {
    8: (10, 1, None, 1, 56, 48), 12: (19, 3, 1, 5, 80, 64), 16: (29, 5, 4, 18, None, 96),
    24: (None, 19, 14, None, None, None),
}  # fmt: skip


@pytest.mark.parametrize("card", PLANS)
def test_a_clip_of_5_seconds_at_1080p_fits_the_card(card):
    free = int(card * 1e9 - OVERHEAD)
    plans = {name: plan(free) for name, plan in PARTS.items()}
    if card == 8:  # the buffers of the largest blocks alone are too large in bf16: fp8 is advised
        short = plans.pop("1080p network")
        assert short.total > usable(free) and short.resident_blocks == 0 and "8 bits" in short.advice
    for name, plan in plans.items():
        assert plan.total <= usable(free) <= 0.95 * free, name
    chosen = [plan.resident_blocks if plan.tile is None else plan.tile for plan in plans.values()]
    expected = list(PLANS[card])
    if card == 8:
        expected.remove(None)
    # One step more or less is no fault: the network's code may come to need a little less.
    for found, wanted in zip(chosen, expected, strict=False):
        assert (found is None) == (wanted is None) and (found is None or abs(found - wanted) <= max(2, wanted // 4))


@pytest.mark.parametrize("config", [NETWORK, TEXT])
def test_as_many_blocks_stay_as_fit(config):
    """Against all counts tried one after the other."""
    options = {"width": 128, "height": 128, "seconds": 1, "text_tokens": 64, "dtype": torch.bfloat16}
    every = [estimate(config, **options, resident_blocks=count) for count in (*range(4), None)]
    for room in {found.total for found in every} | {every[0].total - 1}:
        free = room + 300_000_000  # what is left to others where little is free
        found = plan_blocks(config, free, **options)
        fitting = [each for each in every if each.total <= usable(free)]
        assert found == (fitting[-1] if fitting else min(every, key=lambda each: each.total))
    assert {every[0].blocks, len(every) - 1} == {4}
    assert plan_blocks(config, None, **options).resident_blocks is None


@pytest.mark.parametrize("config", [TURBO, VIDEO])
def test_whole_frames_or_else_the_largest_tiles_that_fit(config):
    clip = {"width": 512, "height": 384, "tokens": 21, "dtype": torch.float32}
    whole = plan_decoding(config, 10**12, **clip)
    assert whole.tile is None and plan_decoding(config, None, **clip).tile is None
    tiles, sizes = [], []
    for share in (0.9, 0.7, 0.45, 0.01):
        found = plan_decoding(config, 300_000_000 + round(share * whole.total), **clip)
        tiles.append(found.tile)
        sizes.append(found.total)
        assert found.total == estimate(config, tile=found.tile, **clip).total
        assert share < 0.1 or found.total <= share * whole.total
    assert tiles == sorted(tiles, reverse=True) and tiles[-1] == 16 and len(set(tiles)) > 2
    small = {**clip, "width": 128, "height": 128}  # no tile is smaller than this
    assert plan_decoding(config, 0, **small).tile is None


@pytest.mark.parametrize("config", [TURBO, VIDEO])
@pytest.mark.parametrize("tile", [10, 11])
def test_tiles_need_what_is_said(config, tile):
    """Against a dry run of all tiles, whose frames are put together in the same place: that of a CPU."""
    latent = (1, 48, 5, 11, 12)
    vae = on_meta(config, torch.float32)

    def run():
        for _ in vae.decode_windows(torch.empty(latent, device="meta"), tile=tile):
            pass

    measured, on_cpu = dry_run(run, "cpu"), decoding_activations(config, latent, torch.float32, "cpu", tile)
    assert 0.97 < on_cpu / measured < 1.1
    # On a card the frames are elsewhere: two windows, or the whole clip.
    clip = 4 * 3 * 17 * 16 * 11 * 16 * 12
    on_card = decoding_activations(config, latent, torch.float32, "cuda", tile)
    assert on_card <= on_cpu - clip


def test_tiles_of_long_clips_need_no_more_for_every_second(monkeypatch):
    """Frames of a few latent frames, and what the layers remember of each tile, against a dry run of all."""
    for module in ("vae.video", "runtime.memory"):
        monkeypatch.setattr(f"magihuman_core.{module}.TILED_LENGTH", 2)
    vae = on_meta(VIDEO, torch.float32)

    def needed(length):
        latent = (1, 48, length, 11, 14)
        measured = dry_run(lambda: [None for _ in vae.decode_windows(torch.empty(latent, device="meta"), tile=11)])
        assert 0.97 < decoding_activations(VIDEO, latent, torch.float32, "cpu", 11) / measured < 1.1
        return measured

    assert needed(12) - needed(8) <= 4 * 2 * 4 * 48 * 11 * 14  # the latents themselves, and denormalized


def test_a_smaller_tile_after_one_that_was_too_large():
    assert smaller_tile(None, 1920, 1088, 16) == 60 and smaller_tile(60, 1920, 1088, 16) == 30
    assert smaller_tile(18, 1920, 1088, 16) == 16 and smaller_tile(None, 448, 256, 16) == 16
    assert smaller_tile(16, 1920, 1088, 16) is None and smaller_tile(None, 256, 256, 16) is None


def test_an_hour_of_audio_is_estimated_as_fast_as_a_minute(monkeypatch):
    ran = []
    monkeypatch.setitem(estimate.__globals__, "dry_run", lambda run, device: ran.append(run) or dry_run(run, device))
    minute, hour = (estimate(AUDIO, seconds=seconds, dtype=torch.float32, device="cpu") for seconds in (60, 3600))
    assert len(ran) == 1  # the tiles of the minute are those of the hour
    rest = 3540 * 25 * (64 + 2 * 2048 * 2) * 4
    assert hour.activations - minute.activations == rest


def test_what_no_plan_fits_is_warned_of_with_what_to_lower(caplog):
    found = plan_blocks(UPSCALER, 6 * 10**9, **CLIP)
    log_plan(found, 6 * 10**9)
    warning = caplog.records[-1].getMessage()
    assert caplog.records[-1].levelname == "WARNING" and "Only 6.0 GB of memory are free" in warning
    assert warning.endswith("Lower, in this order: a smaller picture or a shorter clip, then weights in 8 bits "
                            "(1.7 GB).")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_a_device_without_bf16_keeps_the_weights_and_needs_more_beside_them(dtype):
    for config in (NETWORK, TEXT):
        options = {"width": 256, "height": 256, "seconds": 2, "dtype": dtype}
        plain, wide = (estimate(config, **options, compute_dtype=each) for each in (None, torch.float32))
        assert wide.activations > 1.1 * plain.activations
        small = 1.15 if dtype == torch.bfloat16 else 1.35  # gates are computed in, and so are kept in, fp32
        assert plain.weights <= wide.weights < small * plain.weights
