"""What of a wished clip fits on a graphics card, how long it takes there, and what to set: all before a download."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..model.config import RELEASED
from ..recipes import Recipe
from ..runtime.cards import Card, this_card
from ..runtime.devices import best_device, device_name, holds, total_memory
from ..runtime.main_memory import main_memory
from ..runtime.memory import Estimate
from ..runtime.plan import plan_blocks, plan_decoding, usable
from ..runtime.work import duration, work
from ..sizes import byte_size
from ..text.config import TextEncoderConfig
from ..vae.turbo import TurboVAEConfig
from .wishes import Wish

SECONDS = 5  # of the clip that is looked at
TAKEN = 1_500_000_000  # bytes of a card that the driver, PyTorch's kernels and a screen take
MAIN_MEMORY = 30_000_000_000  # bytes that a machine with files in 8 bits should have at least
WHOLE = 40_000_000_000  # bytes of a card from which on the originals fit as they are


@dataclass(frozen=True)
class Target:
    """A card that a clip is planned for."""

    name: str
    free: int | None  # bytes; None: not known
    card: Card | None = None  # its rates, where they are known
    device: torch.device | None = None  # None: it is not of this machine

    @property
    def known(self) -> bool:
        """Whether it is of the kind that the estimates are made for: NVIDIA's."""
        return self.device is None or (self.device.type == "cuda" and not torch.version.hip)


def target_of(memory: float | None) -> Target | None:
    """The device of this machine, or a card with so many GB of memory; None where there is only a CPU."""
    if memory is not None:
        return Target(f"a card with {memory:g} GB", round(memory * 2**30) - TAKEN)
    device = best_device()
    if device.type == "cpu":
        return None
    # Not what is free now: what other programs and ComfyUI itself keep there can be given back.
    total = total_memory(device)
    return Target(device_name(device), None if total is None else total - TAKEN, this_card(device), device)


@dataclass(frozen=True)
class Fit:
    """How a wish is carried out on a card."""

    wish: Wish
    target: Target
    text: Estimate
    networks: tuple[tuple[Recipe, Estimate], ...]
    decoder: Estimate

    @property
    def runs(self) -> bool:
        """Whether all of it fits."""
        free = self.target.free
        return free is None or all(found.total <= usable(free) for found in
                                   (self.text, self.decoder, *(found for _, found in self.networks)))

    @property
    def seconds(self) -> float | None:
        """Of the clip's making once the files are in main memory, where the card's rates are known.

        Weights that stay are brought in once, the others at each step, while the card computes.
        """
        card = self.target.card
        if card is None:
            return None
        width, height = self.wish.size(self.networks[-1][0])
        total = work(TurboVAEConfig(), width=width, height=height, seconds=SECONDS).seconds(card)
        total += max(work(TextEncoderConfig()).seconds(card), (self.text.weights + self.text.streamed) / card.link)
        for recipe, found in self.networks:
            step = work(_config(recipe), **_clip(self.wish, recipe)).seconds(card)
            total += found.weights / card.link + recipe.steps * max(step, found.streamed / card.link)
        return total


def _config(recipe: Recipe):
    return replace(RELEASED, **recipe.overrides(RELEASED.layers))


def _clip(wish: Wish, recipe: Recipe) -> dict[str, Any]:
    width, height = wish.size(recipe)
    guided = recipe.guidance is not None
    return {"width": width, "height": height, "seconds": SECONDS, "dtype": torch.int8, "guided": guided}


def fit(wish: Wish, target: Target) -> Fit:
    """Plan a clip of 5 seconds with networks in 8 bits, as the pipeline would."""
    networks = tuple((recipe, plan_blocks(_config(recipe), target.free, **_clip(wish, recipe)))
                     for recipe in wish.recipes)
    width, height = wish.size(wish.recipes[-1])
    return Fit(wish, target, plan_blocks(TextEncoderConfig(), target.free, dtype=torch.int8), networks,
               plan_decoding(TurboVAEConfig(), target.free, width=width, height=height, seconds=SECONDS))


def in_words(found: Fit) -> Iterator[str]:
    """What of it fits, line by line; the last one says whether it will run."""
    free = found.target.free
    usable_part = "" if free is None else f", of which {byte_size(free)} can be used"
    yield f"On {found.target.name}{usable_part} (estimated):"
    if not found.target.known:
        yield "  This kind of device was not tried; the estimates are made for NVIDIA cards. Please report."
    for recipe, plan in found.networks:
        width, height = found.wish.size(recipe)
        yield f"  {recipe.role} network, {width}x{height}, {SECONDS} s: {byte_size(plan.total)}{_rest(plan)}"
    yield f"  text encoder: {byte_size(found.text.total)}{_rest(found.text)}"
    tiles = "" if found.decoder.tile is None else ", decoded in squares, piece by piece"
    yield f"  picture decoder: {byte_size(found.decoder.total)}{tiles}"
    main = main_memory().total
    if main < MAIN_MEMORY:
        yield f"  main memory: {byte_size(main)}; 32 GB are wanted, with less the disk is read again and again"
    if not found.runs:
        lower = "without 1080p" if found.wish.upscale == "1080p" else "without super-resolution" if (
            found.wish.upscale) else "shorter and smaller"
        yield f"  It will not run as it is. Make the clip {lower}."
        return
    taken = found.seconds
    yield "  It will run." + ("" if taken is None else f" A clip of {SECONDS} seconds takes about {duration(taken)}.")


def _rest(plan: Estimate) -> str:
    if plan.resident_blocks is None:
        return ""
    return f", {plan.resident_blocks} of {plan.blocks} layers stay; the others wait in main memory"


def settings(wish: Wish, target: Target | None) -> Iterator[str]:
    """What to set, in ComfyUI and on the command line."""
    yield "Set:"
    yield f"  template: {wish.template}"
    yield "  files in 8 bits: nothing; weight_dtype stays at default"
    if target is not None and target.device is not None and not holds(target.device, torch.float8_e4m3fn):
        yield "  files in fp8 in ComfyUI: weight_dtype int8, as this device holds no fp8"
    if target is None or target.free is None or target.free < WHOLE:
        yield "  originals: weight_dtype int8 in Load MagiHuman Model, fp8_e4m3fn in Load MagiHuman Text Encoder"
    if wish.upright:
        yield "  width and height in Empty MagiHuman Latent: 256 and 448"
    command = ["magihuman generate --models FOLDER --prompt-file prompt.txt",
               "--image photo.jpg" if wish.picture else "", "--audio voice.wav" if wish.voice else "",
               "--mode base" if wish.base else "",
               "--width 256 --height 448" if wish.upright else "", f"--upscale {wish.upscale}" if wish.upscale else ""]
    yield f"  on the command line: {' '.join(filter(None, command))}"
