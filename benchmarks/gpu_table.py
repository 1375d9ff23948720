"""README's table of graphics cards, from the estimates of memory and the work model.

usage: python -m benchmarks.gpu_table [--write]

For each size of memory one common card: what of the network stays on it, how the picture is decoded, and how long a
clip of 5 seconds takes, distilled and with super-resolution. --write puts the table into README.md.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from magihuman_core.model.config import RELEASED
from magihuman_core.recipes import DISTILLED, SR_540P, SR_1080P, Recipe
from magihuman_core.runtime.build import on_meta
from magihuman_core.runtime.cards import Card, find_card
from magihuman_core.runtime.memory import estimate
from magihuman_core.runtime.streaming import choose_streamed, streamed_sizes
from magihuman_core.runtime.work import duration, work
from magihuman_core.text.config import TextEncoderConfig
from magihuman_core.vae.turbo import TurboVAEConfig

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- python -m benchmarks.gpu_table --write -->\n", "<!-- end -->\n"
CARDS = ("RTX 3060", "RTX 4080", "RTX 4090", "RTX 5090", "L40S", "H100 80GB HBM3")
SECONDS = 5
TAKEN = 1.5e9  # bytes that the driver, PyTorch's kernels and a screen take
TILES = (None, 60, 30, 20, 16)  # latent pixels; the largest that fits is taken
RECIPES = (DISTILLED, SR_540P, SR_1080P)


@dataclass(frozen=True)
class Network:
    """How the network lies in a card's memory: as many of its blocks as fit, the others come in at each step."""

    blocks: int
    weights: int  # bytes on the card, with the buffers for the others
    streamed: int  # bytes that come in at each step


def network(recipe: Recipe, dtype: torch.dtype, free: float) -> Network:
    needed = activations(recipe, dtype)
    return next((plan for plan in plans(dtype) if plan.weights + needed <= free), plans(dtype)[-1])


@cache
def activations(recipe: Recipe, dtype: torch.dtype) -> int:
    config = replace(RELEASED, **recipe.overrides(RELEASED.layers))
    return estimate(config, width=recipe.width, height=recipe.height, seconds=SECONDS, dtype=dtype).activations


@cache
def plans(dtype: torch.dtype) -> list[Network]:
    """With all blocks resident, with one less, and so on."""
    dit = on_meta(RELEASED, dtype)
    total, found = sum(tensor.nbytes for tensor in dit.state_dict().values()), []
    for count in range(RELEASED.layers, -1, -1):
        streamed, buffers = streamed_sizes(dit.blocks, choose_streamed(dit.blocks, count))
        found.append(Network(count, total - streamed + buffers, streamed))
    return found


def decoding(recipe: Recipe, free: float) -> tuple[int, int | None]:
    """What the Turbo VAE takes, and its tile."""
    needs = ((turbo(recipe, tile), tile) for tile in TILES)
    return next((need for need in needs if need[0] <= free), (turbo(recipe, TILES[-1]), TILES[-1]))


@cache
def turbo(recipe: Recipe, tile: int | None) -> int:
    return estimate(TurboVAEConfig(), width=recipe.width, height=recipe.height, seconds=SECONDS, tile=tile).total


def step_seconds(recipe: Recipe, dtype: torch.dtype, card: Card, streamed: int) -> float:
    """Of a step, in which weights come in while the card computes."""
    config = replace(RELEASED, **recipe.overrides(RELEASED.layers))
    found = work(config, width=recipe.width, height=recipe.height, seconds=SECONDS, dtype=dtype)
    return max(found.seconds(card), streamed / card.link)


def clip_seconds(target: Recipe, card: Card, free: float) -> float:
    """Of a whole clip, in the dtype that is faster: text, all steps, and decoding."""
    def sampled(recipe: Recipe) -> float:
        return min(recipe.steps * step_seconds(recipe, dtype, card, network(recipe, dtype, free).streamed)
                   for dtype in (torch.bfloat16, torch.int8))

    decoder = work(TurboVAEConfig(), width=target.width, height=target.height, seconds=SECONDS)
    upscaled = 0.0 if target is DISTILLED else sampled(target)
    return text_seconds(card) + sampled(DISTILLED) + upscaled + decoder.seconds(card)


def text_seconds(card: Card) -> float:
    """Of reading the prompt."""
    return max(work(TextEncoderConfig()).seconds(card), estimate(TextEncoderConfig()).weights / card.link)


def rows() -> Iterator[str]:
    """Lines of the table, in Markdown."""
    yield "| GPU memory | network on the card | picture decoder | 448x256 | 540p | 1080p |"
    yield "|---|---|---|---|---|---|"
    for name in CARDS:
        card = find_card(name)
        free = card.memory - TAKEN
        times = " | ".join(duration(clip_seconds(recipe, card, free)) for recipe in RECIPES)
        yield f"| {card.memory >> 30} GB ({name.split(' 80')[0]}) | {_network(free)} | {_decoding(free)} | {times} |"


def _network(free: float) -> str:
    """What stays on the card at 1080p, where room is least."""
    words = []
    for name, dtype in (("bf16", torch.bfloat16), ("8 bits", torch.int8)):
        found = network(SR_1080P, dtype, free)
        if found.blocks == RELEASED.layers:
            words.append(f"{name} whole ({_size(found.weights)})")
            break
        words.append(f"{name} {_size(found.weights)}, {found.blocks} of {RELEASED.layers} blocks")
    return "; ".join(words)


def _decoding(free: float) -> str:
    found, tile = decoding(SR_1080P, free)
    return _size(found) + ("" if tile is None else f" (1080p in tiles of {tile})")


def _size(count: int) -> str:
    return f"{count / 1e9:.0f} GB"


def table() -> str:
    return "\n".join(rows()) + "\n"


def written(text: str) -> str:
    """README's text with the table as it is now."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    if parser.parse_args().write:
        README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(table())
