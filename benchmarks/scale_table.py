"""The tables of docs/scale.md, from the work model: a clip on several cards, and many clips on many.

usage: python -m benchmarks.scale_table [--write]

A step on several cards takes the time of one, divided by their number; the time in which each decodes weights of 8
bits, which is not divided; and the time in which they send each other what attention needs (runtime/parallel.py). It
takes no less than the weights that do not fit need to come in, on each card. The decoder shares out its windows. All
else is as in loading/fits.py, which `magihuman inspect --for` and README's table tell.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch

from magihuman_core.loading.fits import SECONDS, Fit, fit
from magihuman_core.loading.wishes import parse_wish
from magihuman_core.model.config import RELEASED
from magihuman_core.recipes import DISTILLED, SR_540P, SR_1080P, Recipe
from magihuman_core.runtime.cards import Card
from magihuman_core.runtime.work import KEPT, duration, work
from magihuman_core.sizes import PIXELS_PER_TOKEN, TEXT_TOKENS, audio_length, latent_frames
from magihuman_core.vae.turbo import TurboVAEConfig

from .blocks import written
from .estimates import RECIPES, card_of, step_work, target_of_card
from .parallel import bytes_sent
from .published import SHARED_STEPS, STEPS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
CARDS = ("RTX 4090", "RTX 5090", "L40S", "A100-SXM4-80GB", "H100 80GB HBM3", "B200")
# Bytes a second in one direction between cards of one machine, where that is more than the bus has (data sheets).
NVLINK = {"A100-SXM4-80GB": 300e9, "H100 80GB HBM3": 450e9, "B200": 900e9}
RANKS = (1, 2, 4, 8)
NAMES = {DISTILLED.role: "448x256", SR_540P.role: "540p", SR_1080P.role: "1080p"}
WISHES = {"448x256": "picture voice", "540p": "picture voice 540p", "1080p": "picture voice 1080p"}
NIGHT, CLIPS = 10 * 3600, 1000
SHORT = (" 80GB HBM3", "-SXM4-80GB")  # of names, what no reader misses


def tokens(recipe: Recipe, seconds: float = SECONDS) -> int:
    """Of a clip, all modalities."""
    length = audio_length(seconds)
    return (recipe.width // PIXELS_PER_TOKEN * (recipe.height // PIXELS_PER_TOKEN) * latent_frames(length) + length
            + TEXT_TOKENS)


def peer_link(card: Card) -> float:
    """Bytes a second from one card to the others of its machine."""
    return NVLINK.get(card.name, card.peak_link) * card.reached.link


@cache
def decoding_bytes(recipe: Recipe, dtype: torch.dtype) -> int:
    """Bytes that move in a step to decode weights of 8 bits, however few tokens there are."""
    kept = [sum(kernel.bytes * count for kernel, count in step_work(recipe, each).kernels if kernel.kind == KEPT)
            for each in (dtype, torch.bfloat16)]
    return kept[0] - kept[1]


def step_seconds(recipe: Recipe, card: Card, ranks: int, dtype: torch.dtype = torch.int8, *, fused: bool = False,
                 streamed: int = 0) -> float:
    """Of a step that so many cards share. streamed: bytes of weights that come in, on each card."""
    alone = step_work(recipe, dtype).seconds(card, fused)
    undivided = decoding_bytes(recipe, dtype) / card.bandwidth
    sent = RELEASED.layers * bytes_sent(RELEASED, tokens(recipe), ranks)
    return max(undivided + (alone - undivided) / ranks + sent / peer_link(card), streamed / card.link)


@cache
def planned(wish: str, card: Card) -> Fit:
    return fit(parse_wish(wish), target_of_card(card))


def clip_seconds(wish: str, card: Card, ranks: int = 1) -> float:
    """Of a whole clip: what one card takes, less what steps and decoding gain by several, each with its own weights."""
    found, config = planned(wish, card), TurboVAEConfig()
    assert found.seconds is not None, card
    windows = 1 + math.ceil((latent_frames(audio_length(SECONDS)) - config.first_chunk_size) / config.step_size)
    target = found.networks[-1][0]
    decoding = work(config, width=target.width, height=target.height, seconds=SECONDS).seconds(card)
    gained = decoding * (1 - math.ceil(windows / ranks) / windows)
    for recipe, plan in found.networks:
        alone, together = (step_seconds(recipe, card, each, streamed=plan.streamed) for each in (1, ranks))
        gained += recipe.steps * (alone - together)
    return found.seconds - gained


def one_clip() -> Iterator[str]:
    """Seconds of a clip by one card and by several, and what they gain."""
    yield "| card | size | 1 | 2 | 4 | 8 | gained by 2, 4, 8 |"
    yield "|---|---|---:|---:|---:|---:|---|"
    for card in cards():
        for name, wish in WISHES.items():
            times = [clip_seconds(wish, card, ranks) for ranks in RANKS]
            gains = ", ".join(f"{times[0] / time:.1f}" for time in times[1:])
            yield f"| {short(card)} | {name} | {' | '.join(map(duration, times))} | {gains} |"


def clip_minutes() -> Iterator[str]:
    """What a minute of finished clips costs, in minutes of a card."""
    yield "| card | 448x256 | 540p | 1080p |"
    yield "|---|---:|---:|---:|"
    for card in cards():
        costs = (clip_seconds(wish, card) / SECONDS for wish in WISHES.values())
        yield f"| {short(card)} | {' | '.join(f'{cost:.2g}' if cost < 10 else f'{cost:.0f}' for cost in costs)} |"


def night() -> Iterator[str]:
    """Hours of one card for a thousand clips, and cards that make them in a night, side by side."""
    yield "| card | 448x256 | 540p | 1080p |"
    yield "|---|---:|---:|---:|"
    for card in cards():
        times = [CLIPS * clip_seconds(wish, card) for wish in WISHES.values()]
        yield f"| {short(card)} | {' | '.join(f'{time / 3600:.1f} h: {math.ceil(time / NIGHT)}' for time in times)} |"


def published() -> Iterator[str]:
    """Steps that others measured on several cards, beside the model's."""
    yield "| step of 5 s, RTX 5090 | 1, published | expected | 2, published | expected | 4, published | expected |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    card = card_of("RTX 5090")
    for recipe in RECIPES:
        theirs = (STEPS["RTX 5090"], SHARED_STEPS[2], SHARED_STEPS[4])
        cells = (f"{times[recipe.role]:.2f} | {step_seconds(recipe, card, ranks, torch.bfloat16, fused=True):.2f}"
                 for times, ranks in zip(theirs, (1, 2, 4), strict=True))
        yield f"| {NAMES[recipe.role]} | {' | '.join(cells)} |"


def sent() -> Iterator[str]:
    """What each card sends in a step."""
    yield "| | tokens | 2 cards | 4 cards | 8 cards |"
    yield "|---|---:|---:|---:|---:|"
    for recipe in RECIPES:
        counts = (RELEASED.layers * bytes_sent(RELEASED, tokens(recipe), ranks) / 1e9 for ranks in RANKS[1:])
        yield f"| {NAMES[recipe.role]} | {tokens(recipe):,} | {' | '.join(f'{count:.2f} GB' for count in counts)} |"


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "clip": one_clip, "minutes": clip_minutes, "night": night, "published": published, "sent": sent}


def cards() -> list[Card]:
    return [card_of(name) for name in CARDS]


def short(card: Card) -> str:
    return re.sub("|".join(SHORT), "", card.name)


def tables() -> dict[str, str]:
    return {name: "\n".join(table()) for name, table in TABLES.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
    print(*tables().values(), sep="\n\n")
