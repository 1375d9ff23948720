"""The work model against what torch counts of whole runs, closed forms, and times that others published."""

import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from magihuman_core import DiTConfig, InputError
from magihuman_core.model.config import RELEASED
from magihuman_core.recipes import BASE, RECIPES, SR_540P, SR_1080P
from magihuman_core.runtime import work as work_module
from magihuman_core.runtime.build import on_meta
from magihuman_core.runtime.cards import find_card
from magihuman_core.runtime.work import duration, in_words, log_seconds, scaled, work
from magihuman_core.sizes import audio_length, latent_frames
from magihuman_core.text.config import TextEncoderConfig
from magihuman_core.vae.audio import AudioVAEConfig
from magihuman_core.vae.turbo import TurboVAEConfig
from magihuman_core.vae.video import VideoVAEConfig

SMALL = DiTConfig(
    layers=6, hidden=256, head_dim=32, heads=8, kv_heads=2, video_channels=48, audio_channels=64, text_channels=128,
    gelu_width=1024, swiglu_width=256 * 8 // 3 // 4 * 4, sandwich_layers=(0, 1, 5), gelu_layers=(0,),
)  # fmt: skip
LOCAL = replace(SMALL, positions="v1", local_layers=(1, 2, 4), local_radius=2, post_norm_layers=(3,))
FEWER = replace(RELEASED, **SR_540P.overrides(40), layers=10, sandwich_layers=(0, 1, 8, 9), gelu_layers=(0, 1))
CLIP = {"width": 128, "height": 192, "seconds": 2.2, "text_tokens": 50}
INT8, FP32 = {"dtype": torch.int8}, {"dtype": torch.float32}
CASES = {
    "small": (SMALL, CLIP), "local": (LOCAL, CLIP | FP32), "int8": (SMALL, CLIP | INT8),
    "guided": (SMALL, CLIP | {"guided": True}), "released": (RELEASED, {"seconds": 5}),
    "released, 540p, int8": (FEWER, {"width": 896, "height": 512} | INT8),
    "text": (TextEncoderConfig(), {}), "text int8": (TextEncoderConfig(num_hidden_layers=3), INT8),
    "turbo": (TurboVAEConfig(), {"seconds": 3}), "turbo 540p": (TurboVAEConfig(), {"width": 896, "height": 512}),
    "wan": (VideoVAEConfig(), {"seconds": 2}),
    "wan encoder": (VideoVAEConfig(), {"width": 896, "height": 512, "encode": True} | FP32),
    "audio": (AudioVAEConfig(), {"seconds": 12} | FP32), "audio encoder": (AudioVAEConfig(), {"encode": True} | FP32),
}


class Moved(TorchDispatchMode):
    """Bytes that operations read and write, by what their schemas say of their arguments."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        aliases = [part.alias_info for part in func._schema.returns]
        views = any(alias is not None and not alias.is_write for alias in aliases) or func.is_view
        if views or func._schema.name in ("aten::empty", "aten::empty_like", "aten::new_empty", "aten::_unsafe_view"):
            return out
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if func is torch.ops.aten.copy_.default:
            read = read[1:]
            if read[0]._base is not None and args[0]._base is read[0]._base:
                return out  # the last step of x[a:b] += y
        wrote = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.bytes += sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in [*read, *wrote])
        return out


class OneKernel(TorchFunctionMode):
    """Attention without its scores in memory; its operations are counted as they come."""

    def __init__(self, moved):
        super().__init__()
        self.moved = moved

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        before = self.moved.bytes
        out = func(*args, **(kwargs or {}))
        self.moved.bytes = before + sum(x.nbytes for x in (*args[:3], out))
        return out


@torch.no_grad()
def whole_run(config, *, width=BASE.width, height=BASE.height, seconds=4, dtype=torch.bfloat16, text_tokens=640,
              guided=False, encode=False):
    """A function that runs the whole part once, all its blocks and windows, on the meta device."""
    part = on_meta(config, dtype)
    length = audio_length(seconds)

    def empty(*shape):
        return torch.empty(shape, device="meta")

    latent = latent_frames(length), height // 16, width // 16
    if isinstance(config, DiTConfig):
        part.piece = part.piece or 4096
        part.layout(*[(latent, length, text_tokens)] * (1 + guided))
        clip = (empty(1, config.video_channels, *latent), empty(1, config.audio_channels, length),
                empty(1, text_tokens, config.text_channels))
        return lambda: part.forward_many([clip] * (1 + guided))
    if isinstance(config, TextEncoderConfig):
        return lambda: part(torch.empty(1, text_tokens, dtype=torch.long, device="meta"))
    if isinstance(config, AudioVAEConfig):
        if encode:
            return lambda: part.encode_long(empty(1, 2, int(seconds * 51200)))
        return lambda: part.decode(empty(1, config.latent_channels, length))
    if encode:
        return lambda: part.encode(empty(1, 3, 1, height, width))
    return lambda: list(part.decode_windows(empty(1, config.latent_channels, *latent)))


@pytest.mark.parametrize("name", CASES)
def test_operations_and_bytes_are_those_that_torch_counts(name):
    config, options = CASES[name]
    found, run = work(config, **options), whole_run(config, **options)
    moved = Moved()
    with torch.no_grad(), FlopCounterMode(display=False) as counted, OneKernel(moved), moved:
        run()
    assert found.flops == pytest.approx(counted.get_total_flops(), rel=0.02)
    assert found.bytes == pytest.approx(moved.bytes, rel=0.10)


def test_the_networks_work_is_that_of_its_weights_and_of_all_pairs_of_tokens():
    tokens, per_expert = 3584 + 126 + 640, {}
    for name, parameter in on_meta(RELEASED, torch.bfloat16).named_parameters():
        if name.startswith("blocks.") and parameter.dim() == 2:  # of three experts a token meets one
            per_expert[name] = parameter.numel() / (3 if int(name.split(".")[1]) in RELEASED.sandwich_layers else 1)
    active = sum(per_expert.values())
    assert active == pytest.approx(10.9e9, rel=0.01)
    found = work(RELEASED, seconds=5)
    assert found.flops_of("matrix") == pytest.approx(2 * active * tokens, rel=0.01)
    assert found.flops_of("attention") == 40 * 4 * 40 * 128 * tokens**2
    upscaler = work(replace(RELEASED, **SR_1080P.overrides(40)), width=1920, height=1088, seconds=5)
    share = upscaler.flops_of("attention") / (40 * 4 * 40 * 128 * (32 * 2040 + 126 + 640) ** 2)
    assert share == pytest.approx(0.2 + 0.8 * 0.59, abs=0.02)  # 23 of 32 latent frames, fewer at both ends


# Seconds for 5 s of video: distilled and super-resolution steps, as the model's authors and those of the compiler
# that they use give them (docs/performance.md). Both fuse elementwise work.
PUBLISHED = {
    "NVIDIA H100 80GB HBM3": {"distilled": 1.6 / 8, "sr_540p": 5.1 / 5, "sr_1080p": 31 / 5},
    "NVIDIA GeForce RTX 5090": {"distilled": 0.56, "sr_540p": 2.62, "sr_1080p": 19.38},
}


@pytest.mark.parametrize("role", PUBLISHED["NVIDIA H100 80GB HBM3"])
@pytest.mark.parametrize("card", PUBLISHED)
def test_times_are_near_those_that_others_published(card, role):
    recipe = RECIPES[role]
    step = work(replace(RELEASED, **recipe.overrides(40)), width=recipe.width, height=recipe.height, seconds=5)
    assert step.seconds(find_card(card), fused=True) == pytest.approx(PUBLISHED[card][role], rel=0.25)
    assert step.seconds(find_card(card)) > step.seconds(find_card(card), fused=True)


def test_decoding_takes_about_what_others_published():
    """0.4, 1.3 and 5.8 s, with all that happens between the decoder and the file."""
    for recipe, seconds in ((BASE, 0.4), (SR_540P, 1.3), (SR_1080P, 5.8)):
        found = work(TurboVAEConfig(), width=recipe.width, height=recipe.height, seconds=5)
        assert 0.6 * seconds < found.seconds(find_card("NVIDIA H100 80GB HBM3")) < 1.3 * seconds


def test_what_makes_a_difference():
    plain = work(SMALL, **CLIP)
    assert work(SMALL, **CLIP, guided=True).flops == 2 * plain.flops
    narrow = work(SMALL, **CLIP, **INT8)
    assert narrow.flops == plain.flops and narrow.bytes > plain.bytes and narrow.fused_bytes > plain.fused_bytes
    assert work(LOCAL, **CLIP).flops_of("attention") < plain.flops_of("attention")
    assert plain.fused_bytes < 0.6 * plain.bytes
    with torch.inference_mode():
        work_module._count.cache_clear()
        assert work(SMALL, **CLIP) == plain
    with pytest.raises(InputError, match="no clip"):
        work(SMALL, width=8)
    with pytest.raises(InputError, match="only decodes"):
        work(TurboVAEConfig(), encode=True)


@pytest.mark.parametrize(("device", "name"), [
    ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti SUPER"),
    ("NVIDIA GeForce RTX 4070", "RTX 4070"), ("NVIDIA GeForce RTX 3060 Ti", None), ("NVIDIA H200", "H200"),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA GeForce RTX 4090 D", None), ("Quadro RTX 4000", None),
    ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"), ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
])  # fmt: skip
def test_cards_are_known_by_the_names_that_drivers_give(device, name):
    card = find_card(device)
    assert (card and card.name) == name


def test_the_log_says_how_long_it_takes_where_the_card_is_known(caplog, monkeypatch):
    card = find_card("NVIDIA GeForce RTX 3060")
    weights = sum(p.nbytes for p in on_meta(SMALL, torch.bfloat16).blocks.parameters() if p.dim() == 2)
    with caplog.at_level(logging.INFO):
        log_seconds(SMALL, device="cpu", steps=8, **CLIP)
        assert not caplog.records
        monkeypatch.setattr(work_module, "this_card", lambda device: card)
        log_seconds(SMALL, device="cuda", steps=8, **CLIP)
        slow = replace(card, peak_link=1e6)  # so slow that bringing in the weights takes longer than computing
        monkeypatch.setattr(work_module, "this_card", lambda device: slow)
        log_seconds(SMALL, device="cuda", steps=8, streamed=weights, **CLIP)
    expected = duration(work(SMALL, **CLIP).seconds(card))
    assert caplog.messages[0].startswith(f"About {expected} for each of 8 steps on this card (RTX 3060): estimated")
    assert caplog.messages[1].startswith(f"About {duration(weights / slow.link)} for each")


def test_numbers_in_words():
    assert [duration(s) for s in (0.0001, 0.004, 0.45, 3.21, 45, 720, 9000)] == [
        "1 ms", "4 ms", "0.45 s", "3.2 s", "45 s", "12 min", "2.5 h"]
    assert [scaled(n) for n in (3.87e15, 110.5e12, 28e9, 5e6)] == ["3.9 P", "110 T", "28 G", "5.0 M"]
    made = work_module.Work(((work_module.Kernel("matrix", 10**13, 10**9, 10**8), 11),))
    assert in_words(made, [find_card("RTX 4090")]) == "110 TFLOP, 11 GB moved; 0.72 s on an RTX 4090 (estimated)"
