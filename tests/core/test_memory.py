"""Estimates of memory against what processes really took, and what they say."""

import logging
import re
import sys
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from magihuman_core import DiTConfig, InputError, MagiHumanDiT, MagiHumanPipeline, load_dit
from magihuman_core.pipeline import stages
from magihuman_core.recipes import SR_1080P
from magihuman_core.runtime.build import build_dit, build_text_encoder
from magihuman_core.runtime.dry_run import dry_run
from magihuman_core.runtime.memory import estimate
from magihuman_core.runtime.plan import log_plan
from magihuman_core.runtime.streaming import streamer_of
from magihuman_core.sizes import audio_length, byte_size, latent_frames
from magihuman_core.text.config import TextEncoderConfig
from magihuman_core.vae.audio import AudioVAE, AudioVAEConfig
from magihuman_core.vae.turbo import TurboVAE, TurboVAEConfig
from magihuman_core.vae.video import VideoVAE, VideoVAEConfig
from magihuman_core.weights.dit_keys import official_state_dict

from .golden import in_fresh_process, memory_of_process, real_model

KINDS = {DiTConfig: build_dit, TurboVAEConfig: TurboVAE, VideoVAEConfig: VideoVAE, AudioVAEConfig: AudioVAE,
         TextEncoderConfig: build_text_encoder}
NETWORK = DiTConfig(
    layers=4, hidden=512, head_dim=64, heads=8, kv_heads=2, video_channels=48, audio_channels=64, text_channels=256,
    gelu_width=2048, swiglu_width=512 * 8 // 3 // 4 * 4, sandwich_layers=(0, 3), gelu_layers=(0,),
)  # fmt: skip
LOCAL = replace(NETWORK, positions="v1", local_layers=(1, 2), local_radius=2)
TURBO = TurboVAEConfig(decoder_block_out_channels=(32, 32, 64, 64), decoder_layers_per_block=(1, 1, 1, 1, 1))
VIDEO = VideoVAEConfig(encoder_dim=16, decoder_dim=32, blocks=1)
AUDIO = AudioVAEConfig(widths=(32, 32, 64, 64, 128, 128))
TEXT = TextEncoderConfig(hidden_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
                         head_dim=64, intermediate_size=2048, vocab_size=1024)
SMALL = {"width": 128, "height": 128, "seconds": 1, "dtype": torch.float32, "text_tokens": 64}
MEDIUM = {"width": 256, "height": 256, "seconds": 2, "dtype": torch.float32, "text_tokens": 640}
BF16, INT8 = {"dtype": torch.bfloat16}, {"dtype": torch.int8}
FAMILIES = {
    "network": {
        "small": (NETWORK, SMALL), "medium": (NETWORK, MEDIUM), "bf16": (NETWORK, MEDIUM | BF16),
        "guided": (NETWORK, MEDIUM | {"guided": True}), "local": (LOCAL, MEDIUM), "int8": (NETWORK, MEDIUM | INT8),
    },
    "turbo": {
        "small": (TURBO, SMALL), "medium": (TURBO, MEDIUM), "bf16": (TURBO, SMALL | BF16),
        "tiled": (TURBO, SMALL | {"width": 192, "height": 192, "tile": 10}),
    },
    "video": {"small": (VIDEO, SMALL), "medium": (VIDEO, MEDIUM | {"seconds": 0.5})},
    "audio": {"small": (AUDIO, SMALL), "medium": (AUDIO, MEDIUM | {"seconds": 8})},
    "text": {"small": (TEXT, SMALL), "medium": (TEXT, MEDIUM), "bf16": (TEXT, MEDIUM | BF16),
             "int8": (TEXT, MEDIUM | INT8)},
}
# Without bf16 in the processor its convolutions take minutes, and five times the memory for copies in fp32.
if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
    del FAMILIES["turbo"]["bf16"]


def run(config, width, height, seconds, dtype, **options):
    """Bytes of weights and of activations that one run takes, from before its weights are made."""
    length = audio_length(seconds)
    grid = latent_frames(length), height // 16, width // 16
    on_meta = {} if isinstance(config, (DiTConfig, TextEncoderConfig)) else {"device": "meta"}
    before = memory_of_process("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    module = KINDS[type(config)](config, dtype=dtype, **on_meta).to_empty(device="cpu").eval()
    for tensor in module.state_dict().values():
        torch.nn.init.constant_(tensor, 0.01)
    loaded = memory_of_process("VmHWM") - before
    if isinstance(config, DiTConfig):
        clip = (torch.zeros(1, config.video_channels, *grid), torch.zeros(1, config.audio_channels, length),
                torch.zeros(1, options["text_tokens"], config.text_channels))
        module.forward_many([clip] * (1 + options.get("guided", False)))
    elif isinstance(config, TextEncoderConfig):
        module(torch.zeros(1, options["text_tokens"], dtype=torch.long))
    elif isinstance(config, AudioVAEConfig):
        module.decode(torch.zeros(1, config.latent_channels, length))
    else:
        tile = {"tile": options["tile"]} if "tile" in options else {}
        for _ in module.decode_windows(torch.zeros(1, config.latent_channels, *grid), **tile):
            pass
    return loaded, memory_of_process("VmHWM") - before - loaded


@torch.inference_mode()
def measure(family):
    """{case: figures} of one family, in a process whose allocator gives memory back at once.

    Each case runs twice: the first time so that the libraries have what they keep, the second time measured.
    """
    found = {}
    # Two threads as anybody has them, where it makes a difference: alone, some convolutions take other ways.
    torch.set_num_threads(1 if family in ("network", "text") else 2)
    for name, (config, options) in FAMILIES[family].items():
        brief = {"width": 64, "height": 64, "seconds": 0.2}  # what is kept depends little on the size
        first = options | brief if family in ("turbo", "video") and options["dtype"] == torch.float32 else options
        run(config, **first)
        expected = estimate(config, device="cpu", **options)
        found[name] = *run(config, **options), expected.weights, expected.activations
    return found


@cache
def measured(family):
    return in_fresh_process(measure, family, MALLOC_MMAP_THRESHOLD_="65536", OMP_WAIT_POLICY="passive")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("family", "name"), [(family, name) for family in FAMILIES for name in FAMILIES[family]])
def test_estimates_are_within_15_percent_of_what_a_process_takes(family, name):
    weights, activations, expected_weights, expected_activations = measured(family)[name]
    total, expected = weights + activations, expected_weights + expected_activations
    assert 0.85 * total < expected < 1.15 * total
    # Activations alone, but for a megabyte or two that belong to nobody.
    assert 0.85 * activations - 2e6 < expected_activations < 1.15 * activations + 2e6


def test_the_released_network():
    real = DiTConfig.from_state_dict(real_model("network"))
    found = estimate(real)
    assert 30.5e9 < found.weights < 30.8e9 and found.streamed == 0
    assert "3,653 tokens (2,912 video, 101 audio, 640 text)" in str(found)
    assert "To need less: weights in 8 bits (15.4 GB), then fewer resident blocks" in str(found)
    eight = estimate(real, dtype=torch.float8_e4m3fn)
    assert 15.3e9 < eight.weights < 15.6e9 and "8 bits" not in eight.advice
    assert found.activations <= eight.activations < 1.2 * found.activations + 3e8  # one decoded matrix
    few = estimate(real, resident_blocks=0)
    assert few.weights < 4e9 and few.activations == found.activations and few.streamed > 0.99 * 30.5e9
    assert "30.6 GB more come in at each pass" in str(few)
    upscaler = replace(real, **SR_1080P.overrides(40))
    large = estimate(upscaler, width=1920, height=1088, resident_blocks=0)
    assert large.activations < 4e9  # 53,781 tokens: a whole MLP at once would take 15 GB
    assert str(large).endswith("To need less: weights in 8 bits (1.7 GB), then a smaller picture or a shorter clip.")


@pytest.mark.parametrize("blocks", [None, 0, 1, 3, 4, 9])
def test_streamed_weights_are_those_that_are_loaded(blocks):
    dit = MagiHumanDiT(NETWORK, dtype=torch.bfloat16).eval()
    for tensor in dit.state_dict().values():
        torch.nn.init.constant_(tensor, 0.01)
    loaded = load_dit(official_state_dict(dit), dtype=torch.bfloat16, resident_blocks=blocks)
    own = sum(tensor.nbytes for tensor in loaded.state_dict().values() if not tensor.is_meta)
    found = estimate(NETWORK, width=64, height=64, seconds=0.2, resident_blocks=blocks)
    streamer = streamer_of(loaded.blocks)
    if streamer is None:
        assert (found.weights, found.streamed) == (own, 0)
    else:
        assert (found.weights, found.streamed) == (own + streamer.buffer_bytes, streamer.nbytes)


def test_more_of_anything_needs_more():
    base = {"width": 256, "height": 256, "seconds": 1, "device": "cpu"}
    for config in (NETWORK, LOCAL, TURBO, VIDEO):
        needs = [estimate(config, **base | change).activations for change in
                 ({}, {"width": 512}, {"width": 512, "height": 768}, {"width": 512, "height": 768, "seconds": 2})]
        assert needs == sorted(needs) and needs[2] > 1.5 * needs[0]
        if config in (TURBO, VIDEO):  # windows: length makes no difference, but for the latent itself
            assert estimate(config, **base | {"seconds": 8}).activations < 1.05 * estimate(
                config, **base | {"seconds": 4}).activations
    assert estimate(NETWORK, **base, guided=True).activations > estimate(NETWORK, **base).activations
    large = base | {"width": 512, "height": 512}
    assert estimate(TURBO, **large, tile=8).activations < 0.5 * estimate(TURBO, **large).activations
    assert estimate(AUDIO, seconds=2).activations < estimate(AUDIO, seconds=5).activations


def test_inside_inference_mode_it_is_the_same():
    parts, clip = (NETWORK, TURBO, AUDIO, TEXT), {"width": 96, "height": 96, "seconds": 0.4}
    with torch.inference_mode():
        inside = [estimate(config, **clip) for config in parts]
    for cached in ("network_activations", "_video", "_audio", "_text"):
        estimate.__globals__[cached].cache_clear()
    assert [estimate(config, **clip) for config in parts] == inside


def test_a_dry_run_counts_what_is_alive():
    weight = torch.empty(1000, device="meta")

    def run():
        a = torch.empty(1000, device="meta")  # 4000 bytes
        b = a.view(10, 100).transpose(0, 1)
        a += weight.view(1000)
        c = b.contiguous()  # 8000
        del a, b
        d = c.half()  # 6000
        del c
        e = torch.cat([d, d])  # 2000 + 4000
        return e.chunk(2)

    assert dry_run(run) == 8000
    assert dry_run(lambda: weight[10:].mul_(2)) == 0
    square = torch.empty(1, 4, 1000, 64, device="meta")
    assert dry_run(lambda: torch.nn.functional.scaled_dot_product_attention(square, square, square)) == square.nbytes


def test_errors_and_words():
    for wrong in ({"width": 16}, {"height": 0}, {"tokens": 0}, {"seconds": -1}, {"text_tokens": 0}):
        with pytest.raises(InputError):
            estimate(NETWORK, **wrong)
    with pytest.raises(InputError, match="resident_blocks"):
        estimate(NETWORK, resident_blocks=-1)
    found = [byte_size(count) for count in (0, 999, 2500, 6 * 10**6, 64 * 10**6, 1_250_000_000, 57 * 10**9)]
    assert found == ["0 bytes", "999 bytes", "2.5 kB", "6.0 MB", "64 MB", "1.2 GB", "57.0 GB"]


def test_the_log_says_it_before_a_part_is_loaded(caplog):
    found = estimate(NETWORK, device="cpu", width=64, height=64, seconds=0.2)
    with caplog.at_level(logging.INFO):
        log_plan(found, free=found.total)
        log_plan(found, free=None)
        log_plan(found, free=found.activations, loaded=True)
        assert [record.levelname for record in caplog.records] == ["INFO"] * 3 and "network, 64x64" in caplog.text
        log_plan(found, free=found.total - 1)
    assert caplog.records[-1].levelname == "WARNING"
    assert re.search(r"Only [\d.]+ MB of memory are free, and the network needs [\d.]+ MB at least.* Lower, in this "
                     r"order: weights in 8 bits \(.*\), then fewer resident blocks \(.*\), then a smaller picture",
                     caplog.text)


@pytest.mark.parametrize("blocks", [None, 1])
def test_the_pipeline_holds_one_part_at_a_time(blocks, random_models, photograph, monkeypatch):
    """Text encoder, VAEs and both networks: each is gone, to the last weight, before the next one comes."""
    parts: list[tuple[str, weakref.ref]] = []

    def watched(name, load):
        def loading(*args, **options):
            assert not [name for name, weight in parts if weight() is not None]
            module = load(*args, **options)
            parts.extend((name, weakref.ref(weight)) for weight in module.state_dict(keep_vars=True).values())
            return module
        return loading

    for name in ("load_text_encoder", "load_video_vae", "load_audio_vae", "load_turbo_vae", "load_dit"):
        monkeypatch.setattr(stages, name, watched(name, getattr(stages, name)))
    pipeline = MagiHumanPipeline.from_folder(random_models, device="cpu", resident_blocks=blocks)
    clip = pipeline.generate("A person says: hello.", image=photograph, seconds=0.2, width=64, height=64, steps=1,
                             upscale=(96, 96), sr_steps=1)
    assert len(clip.frames) and len({name for name, _ in parts}) == 5
    assert [name for name, weight in parts if weight() is not None] == []
