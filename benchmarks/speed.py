"""Seconds of each stage at the real sizes, on random weights made on the device.

What a step takes does not depend on the weights' values. Where the network does not fit into the card's memory, in
quick runs, and where a step would take long, one block of each kind is run and timed, and counts as often as there are
such blocks. Weights that would come in from main memory are not in that figure; the speed at which they would is
measured.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from magihuman_core import MagiHumanDiT
from magihuman_core.model.config import RELEASED, DiTConfig
from magihuman_core.recipes import DISTILLED, SR_540P, SR_1080P, Recipe
from magihuman_core.runtime.build import Config, on_meta, one_of_each_kind
from magihuman_core.runtime.cards import Card, this_card
from magihuman_core.runtime.devices import free_memory
from magihuman_core.runtime.fuse import fuse_elementwise, why_not
from magihuman_core.runtime.memory import Estimate, estimate
from magihuman_core.runtime.work import Work, work
from magihuman_core.sizes import TEXT_TOKENS, audio_length, latent_frames
from magihuman_core.text.config import TextEncoderConfig
from magihuman_core.vae.audio import AudioVAEConfig
from magihuman_core.vae.turbo import TurboVAEConfig

from .measure import Row, attempt, fill_randomly, interleaved, peak, release, seconds, synchronize
from .published import DECODING, STEPS, beside

SPARE = 2e9  # bytes of the card that others may need
LONG = 20.0  # seconds: a step that would take longer is put together from its blocks


@dataclass(frozen=True)
class Sizes:
    """What is run: the released model, or a small one that shows on a CPU that everything runs."""

    network: DiTConfig
    turbo: TurboVAEConfig
    audio: AudioVAEConfig
    text: TextEncoderConfig
    recipes: tuple[Recipe, ...]
    seconds: float
    text_tokens: int


REAL = Sizes(RELEASED, TurboVAEConfig(), AudioVAEConfig(), TextEncoderConfig(), (DISTILLED, SR_540P, SR_1080P), 5,
             TEXT_TOKENS)
SMALL = Sizes(
    replace(RELEASED, layers=10, hidden=256, head_dim=64, heads=4, kv_heads=2, text_channels=128, gelu_width=1024,
            swiglu_width=680, sandwich_layers=(0, 1, 2, 9), gelu_layers=(0, 1, 2)),
    TurboVAEConfig(decoder_block_out_channels=(16, 16, 32, 32), decoder_layers_per_block=(1, 1, 1, 1, 1)),
    AudioVAEConfig(widths=(16, 16, 32, 32, 64, 64)),
    TextEncoderConfig(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
                      intermediate_size=256, vocab_size=1024),
    (replace(DISTILLED, width=64, height=64), replace(SR_540P, width=96, height=64),
     replace(SR_1080P, width=128, height=96)), 2.2, 24,
)  # fmt: skip


@torch.inference_mode()
def rows(quick: bool = False, device: str | torch.device = "cpu", minutes: float = 8) -> Iterator[Row]:
    """Times, rates and peaks. On a CPU of a small model. minutes: what would take longer is left out."""
    device = torch.device(device)
    bench = Bench(device, SMALL if device.type == "cpu" else REAL, quick, time.perf_counter() + 60 * minutes)
    for what, measure in bench.stages():
        yield from attempt(what, measure)


class Bench:
    """The measurements on one device."""

    def __init__(self, device: torch.device, sizes: Sizes, quick: bool, end: float):
        self.device, self.sizes, self.quick, self.end = device, sizes, quick, end
        self.card: Card | None = this_card(device)
        self.second_per_flop = 1e-14  # of what was measured last; a guess until then

    def stages(self) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
        """All that is measured, each by itself, so that an error in one leaves the others."""
        if self.device.type != "cpu":
            yield from (("products", self.products), ("memory", self.memory), ("copies", self.copies))
        for recipe in self.sizes.recipes:
            yield f"step of {recipe.role}", partial(self.steps, recipe)
        yield "text encoder", self.text
        for recipe in self.sizes.recipes:
            yield (f"Turbo VAE, {recipe.width}x{recipe.height}",
                   partial(self.decode, self.sizes.turbo, recipe, "Turbo VAE", torch.bfloat16))
        yield "audio VAE", partial(self.decode, self.sizes.audio, self.sizes.recipes[0], "audio VAE", torch.float32)

    def products(self) -> Iterator[Row]:
        """What the card reaches by itself: products."""
        n = 8192
        a, b = torch.randn(2, n, n, device=self.device, dtype=torch.bfloat16)
        rate = 2 * n**3 / interleaved(lambda: a @ b, repeats=5, device=self.device)[0]
        yield Row("products of 8192 x 8192 in bf16", rate / 1e12, "TFLOP/s", self._of_peak(rate))

    def memory(self) -> Iterator[Row]:
        """The same of its memory."""
        x = torch.empty(1 << 30, dtype=torch.uint8, device=self.device)
        taken = interleaved(lambda: x.add_(1), repeats=5, device=self.device)[0]
        yield Row("reading and writing its memory", 2 * x.nbytes / taken / 1e9, "GB/s",
                  f"{self.card.peak_bandwidth / 1e9:.0f} GB/s published" if self.card else "")

    def copies(self) -> Iterator[Row]:
        """The same of the link to main memory."""
        host = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
        there = torch.empty_like(host, device=self.device)
        taken = interleaved(lambda: there.copy_(host, non_blocking=True), repeats=5, device=self.device)[0]
        yield Row("copying from main memory", len(host) / taken / 1e9, "GB/s", "what streamed blocks come in at")

    def steps(self, recipe: Recipe) -> Iterator[Row]:
        """A step of the network, plain and fused."""
        release(self.device)
        config = replace(self.sizes.network, **recipe.overrides(self.sizes.network.layers))
        clip = {"width": recipe.width, "height": recipe.height, "seconds": self.sizes.seconds,
                "text_tokens": self.sizes.text_tokens}
        dtype, whole = self._fitting(config, clip)
        needed = work(config, dtype=dtype, **clip)
        predicted = needed.flops * self.second_per_flop
        whole = whole and not self.quick and predicted < LONG
        name = f"step of {recipe.role}, {recipe.width}x{recipe.height}, {self.sizes.seconds:g} s"
        share = 1.0 if whole else len(one_of_each_kind(config)[1]) / config.layers
        if self._too_long(3 * predicted * share):
            yield Row(name, None, "s", f"left out: about {predicted:.0f} s")
            return
        expected = estimate(config, device=self.device, dtype=dtype, **clip)

        def measured(fused: bool) -> Iterator[Row]:
            taken, most = self._step(config, recipe, dtype, whole, fused)
            self.second_per_flop = taken / needed.flops
            how = f"weights in {str(dtype)[6:]}" + ("" if whole else ", from one block of each kind")
            notes = (how, self._rate(needed, taken), self._against(needed, taken, fused), beside(STEPS, recipe.role))
            yield Row(f"{name}, {'fused' if fused else 'plain'}", taken, "s",
                      "; ".join(filter(None, notes)) if self.sizes is REAL else how)
            if not fused:
                yield from self._memory(name, most, expected)

        yield from attempt(f"{name}, plain", lambda: measured(False))
        release(self.device)
        if lacking := why_not(self.device):
            yield Row(f"{name}, fused", None, "s", f"not available here: {lacking}"[:160])
        else:
            yield from attempt(f"{name}, fused", lambda: measured(True))

    def _fitting(self, config: DiTConfig, clip: dict) -> tuple[torch.dtype, bool]:
        """The dtype in which the whole network fits, bf16 if it can; or bf16, and False."""
        free = free_memory(self.device) or 0
        for dtype in (torch.bfloat16, torch.int8):
            if estimate(config, device=self.device, dtype=dtype, **clip).total + SPARE < free:
                return dtype, True
        return torch.bfloat16, False

    def _step(self, config: DiTConfig, recipe: Recipe, dtype: torch.dtype, whole: bool,
              fused: bool) -> tuple[float, int | None]:
        """(seconds, bytes of activations at their peak)"""
        small, counts = (config, [1] * config.layers) if whole else one_of_each_kind(config)
        dit: MagiHumanDiT = fill_randomly(on_meta(small, dtype), self.device).eval()
        fuse_elementwise(dit, fused, self.device)
        length = audio_length(self.sizes.seconds)
        clip = (torch.randn(1, config.video_channels, latent_frames(length), recipe.height // 16, recipe.width // 16,
                            device=self.device),
                torch.randn(1, config.audio_channels, length, device=self.device),
                torch.randn(1, self.sizes.text_tokens, config.text_channels, device=self.device))
        times = [0.0] * small.layers

        def timed(index, block, x, layout, attention):
            outs = []
            times[index] = seconds(lambda: outs.append(block(x, layout, attention)), self.device)
            return outs[0]

        most = peak(lambda: dit(*clip), self.device)  # and all is compiled and chosen
        best = float("inf")
        for _ in range(1 if self.quick else 3):
            taken = seconds(lambda: dit(*clip) if whole else dit(*clip, run_block=timed), self.device)
            repeated = sum((count - 1) * time for count, time in zip(counts, times, strict=True))
            best = min(best, taken + repeated)
            if self._too_long(taken):
                break
        return best, most

    def text(self) -> Iterator[Row]:
        """The text encoder, of which two layers are run."""
        release(self.device)
        config = self.sizes.text
        encoder = fill_randomly(on_meta(replace(config, num_hidden_layers=2), torch.bfloat16), self.device).eval()
        ids = torch.zeros(1, self.sizes.text_tokens, dtype=torch.long, device=self.device)
        encoder(ids)
        taken = interleaved(lambda: encoder(ids), repeats=3, device=self.device)[0] * config.num_hidden_layers / 2
        needed = work(config, text_tokens=self.sizes.text_tokens)
        yield Row(f"text encoder, {self.sizes.text_tokens} tokens", taken, "s",
                  f"from two layers; {self._rate(needed, taken)}")

    def decode(self, config: Config, recipe: Recipe, part: str, dtype: torch.dtype) -> Iterator[Row]:
        """A decoder, whole or in tiles where it would not fit."""
        clip = {"width": recipe.width, "height": recipe.height, "seconds": self.sizes.seconds, "dtype": dtype}
        sound = isinstance(config, AudioVAEConfig)
        size = "" if sound else f", {recipe.width}x{recipe.height}"
        name, options = f"{part}{size}, {self.sizes.seconds:g} s", {}
        release(self.device)
        expected, needed = estimate(config, device=self.device, **clip), work(config, **clip)
        if self.device.type != "cpu" and not sound and expected.total + SPARE > (free_memory(self.device) or 0):
            options = {"tile": 30}
            expected, name = estimate(config, device=self.device, **clip, **options), f"{name}, in tiles of 30"
        predicted = needed.seconds(self.card) if self.card else needed.flops * self.second_per_flop
        if self._too_long(4 * predicted):
            yield Row(name, None, "s", f"left out: about {predicted:.0f} s")
            return
        vae = fill_randomly(on_meta(config, dtype), self.device).eval()
        length = audio_length(self.sizes.seconds)

        def run() -> None:
            if sound:
                vae.decode(torch.randn(1, config.latent_channels, length, device=self.device))
                return
            shape = 1, config.latent_channels, latent_frames(length), recipe.height // 16, recipe.width // 16
            for _ in vae.decode_windows(torch.randn(shape, device=self.device), **options):
                pass

        most = peak(run, self.device)
        taken = seconds(run, self.device)
        notes = (self._rate(needed, taken), self._against(needed, taken, False),
                 beside(DECODING, recipe.role) if part == "Turbo VAE" else "")
        real = "; ".join(filter(None, notes)) if self.sizes is REAL else ""
        yield Row(name, taken, "s", real)
        yield from self._memory(name, most, expected)

    def _too_long(self, predicted: float) -> bool:
        synchronize(self.device)
        return time.perf_counter() + predicted > self.end

    def _rate(self, needed: Work, taken: float) -> str:
        rate = needed.flops / taken
        return f"{rate / 1e12:.3g} TFLOP/s" + (f" ({self._of_peak(rate)})" if self.card else "")

    def _of_peak(self, rate: float) -> str:
        return f"{100 * rate / self.card.peak:.0f} % of the published peak" if self.card else ""

    def _against(self, needed: Work, taken: float, fused: bool) -> str:
        return f"estimated {needed.seconds(self.card, fused):.2f} s" if self.card else ""

    @staticmethod
    def _memory(name: str, most: int | None, expected: Estimate) -> Iterator[Row]:
        if most is not None:
            yield Row(f"memory of {name}", most / 1e9, "GB", f"estimated {expected.activations / 1e9:.2f} GB")
