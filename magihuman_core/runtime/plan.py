"""How each part of the model is run so that it fits into what is free, chosen before it is loaded.

    network, text encoder    whole; else as many blocks or layers stay as fit, the others come in (see streaming.py)
    video decoder            whole frames; else the largest tiles that fit

The estimates (see memory.py) leave out what allocators and libraries take, so a part of what is free is left to them.
"""

import logging
from dataclasses import replace
from typing import Any

import torch

from ..errors import TIP
from ..model.config import DiTConfig
from ..sizes import byte_size
from ..text.config import TextEncoderConfig
from ..vae.turbo import TurboVAEConfig
from ..vae.video import VideoVAEConfig
from .memory import Estimate, estimate, resident

SPARE, LEAST_SPARE = 0.06, 300_000_000  # a share of what is free, and bytes: left to allocators and libraries
TILES = (16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128)  # latent pixels; smaller ones compute most pixels twice

SAID = 1_000_000_000  # bytes of weights from which on a user hears of a part's memory

log = logging.getLogger(__name__)


def usable(free: int) -> int:
    """Of so many free bytes those that may be planned with."""
    return max(0, free - max(round(SPARE * free), LEAST_SPARE))


def plan_blocks(config: DiTConfig | TextEncoderConfig, free: int | None, **options: Any) -> Estimate:
    """What a network or text encoder needs with as many resident blocks or layers as fit.

    free: bytes on the device; None: not known, all stay. options: as for estimate. Where nothing fits, that is planned
    which needs least: see log_plan.
    """
    whole = estimate(config, **options)
    if free is None or whole.total <= usable(free):
        return whole
    dtypes = options.get("dtype", torch.bfloat16), options.get("compute_dtype"), options.get("wide", frozenset())
    # Activations are the same for any number of blocks. Not always do more of them need more: once no large one is
    # left to be streamed, buffers are smaller.
    needs = {count: resident(config, count, *dtypes)[0] for count in range(whole.blocks)}
    fitting = [count for count, weights in needs.items() if weights + whole.activations <= usable(free)]
    chosen = max(fitting) if fitting else min(needs, key=lambda count: needs[count])
    return estimate(config, **options, resident_blocks=chosen)


def plan_decoding(config: TurboVAEConfig | VideoVAEConfig, free: int | None, *, width: int, height: int,
                  **options: Any) -> Estimate:
    """What a video decoder needs in whole frames, or else in about the largest tiles that fit; as plan_blocks."""
    whole = estimate(config, width=width, height=height, **options)
    if free is None or whole.total <= usable(free):
        return whole
    found, sides = whole, (width // config.spatial_factor, height // config.spatial_factor)
    for tile in sorted((tile for tile in TILES if tile < max(sides)), reverse=True):
        # Tiles need about their share of the image, and never less: most are passed over without a dry run.
        share = min(tile, sides[0]) * min(tile, sides[1]) / (sides[0] * sides[1])
        if whole.weights + share * whole.activations <= usable(free) or tile == min(TILES):
            found = estimate(config, width=width, height=height, tile=tile, **options)
            if found.total <= usable(free):
                break
    return found


def smaller_tile(tile: int | None, width: int, height: int, factor: int) -> int | None:
    """The tile to try after one (None: whole frames) needed too much memory; None: there is no smaller one.

    width, height: pixels; factor: pixels of a latent pixel.
    """
    before = max(width, height) // factor if tile is None else tile
    smaller = max(before // 2, min(TILES))
    return smaller if smaller < before else None


def in_words(found: Estimate, free: int | None, *, loaded: bool = False) -> str:
    """One sentence for people that ends in what will happen; empty where it fits by far, or where nothing is known.

    loaded: its weights are there already.
    """
    needed = found.activations if loaded else found.total
    if free is None or needed > free or (found.resident_blocks is None and found.tile is None and needed < 0.6 * free):
        return ""
    first = f"{found.part[0].upper()}{found.part[1:]}: wants {byte_size(needed)}, {byte_size(free)} are free"
    if found.resident_blocks is not None:
        return (f"{first}, so {found.resident_blocks} of {found.blocks} layers stay, and the others wait in main "
                "memory or on the disk: it will run, more slowly.")
    return f"{first}{', so it works in small squares' if found.tile is not None else ''}: it will run."


def log_plan(found: Estimate, free: int | None, *, loaded: bool = False) -> None:
    """Log what a part needs and how it will be run; a warning where the device has less than that free.

    loaded: its weights are there already.
    """
    if found.weights > SAID and (said := in_words(found, free, loaded=loaded)):
        log.log(TIP, "%s", said)
    shown = found if found.resident_blocks is None and found.tile is None else replace(found, advice="")
    log.info("%s", shown)
    if found.tile is not None:
        log.info("%s: decoded in tiles of %d x %d latent pixels.", found.part, found.tile, found.tile)
    needed = found.activations if loaded else found.total
    if free is not None and free < needed:
        advice = f" Lower, in this order: {found.advice}." if found.advice else ""
        log.warning("Only %s of memory are free, and the %s needs %s at least: this may fail, or be very slow.%s",
                    byte_size(free), found.part, byte_size(needed), advice)
