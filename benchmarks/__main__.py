"""All benchmarks in one process after another, and one page.

usage: python -m benchmarks [--quick] [--write]

Prints the page. --write keeps it as docs/performance.md, with the plot beside it. (benchmarks.card is for machines
with a graphics card, and writes a report of its own.)
"""

import argparse
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from magihuman_core.model.config import RELEASED
from magihuman_core.recipes import DISTILLED, SR_540P, SR_1080P
from magihuman_core.runtime.cards import Card, find_card
from magihuman_core.runtime.work import ATTENTION, CONVOLUTION, MATRIX, work
from magihuman_core.vae.turbo import TurboVAEConfig
from magihuman_core.vae.video import VideoVAEConfig

from .plot import bars
from .published import DECODING, SOURCES, STEPS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
PLOT = PAGE.with_suffix(".svg")
MODULES = ("network", "attention", "decoding", "precision", "loading", "streaming", "parallel", "live")
RECIPES = (DISTILLED, SR_540P, SR_1080P)


def measured(quick: bool) -> Iterator[str]:
    """The table of each module, in a process of its own, so that none has another's memory."""
    for module in MODULES:
        command = [sys.executable, "-m", f"benchmarks.{module}", *(["--quick"] if quick else [])]
        if module == "precision":
            command = command[:3]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PAGE.parents[1])  # noqa: S603
        title = f"### {module.capitalize()}: `python -m benchmarks.{module}`"
        yield f"{title}\n\n{done.stdout.strip() or 'failed: ' + done.stderr.strip()[-300:]}"


def estimated() -> Iterator[str]:
    """Work and times of the stages, by the work model."""
    cards = [card for name in ("RTX 3060", "RTX 4090", "RTX 5090", "H100 80GB HBM3") if (card := find_card(name))]
    yield "| 5 seconds | operations: matrices, attention, convolutions | moved, plain / fused | " + " | ".join(
        card.name for card in cards) + " |"
    yield "|---|---|---|" + "---|" * len(cards)
    for name, config, recipe in stages():
        found = work(config, width=recipe.width, height=recipe.height, seconds=5)
        flops = ", ".join(f"{found.flops_of(kind) / 1e12:,.0f}" for kind in (MATRIX, ATTENTION, CONVOLUTION))
        times = " | ".join(f"{found.seconds(card):.2f} / {found.seconds(card, fused=True):.2f} s" for card in cards)
        yield (f"| {name}, {recipe.width}x{recipe.height} | {flops} TFLOP | {found.bytes / 1e9:,.0f} / "
               f"{found.fused_bytes / 1e9:,.0f} GB | {times} |")


def stages() -> Iterator[tuple]:
    for recipe in RECIPES:
        yield f"step, {recipe.role}", replace(RELEASED, **recipe.overrides(RELEASED.layers)), recipe
    for name, config in (("Turbo VAE", TurboVAEConfig()), ("Wan2.2 VAE", VideoVAEConfig())):
        for recipe in RECIPES:
            yield name, config, recipe


def published() -> list[tuple[str, float, float]]:
    """(what, published seconds, estimated seconds) of steps and decoding."""
    found = []
    for name, figures in STEPS.items():
        for recipe in RECIPES:
            step = work(replace(RELEASED, **recipe.overrides(RELEASED.layers)), width=recipe.width,
                        height=recipe.height, seconds=5)
            found.append((f"{name}, {recipe.role}", figures[recipe.role], step.seconds(_card(name), fused=True)))
    for recipe in RECIPES:
        name = "H100 80GB HBM3"
        decoder = work(TurboVAEConfig(), width=recipe.width, height=recipe.height, seconds=5)
        found.append((f"{name}, decoding {recipe.width}x{recipe.height}", DECODING[name][recipe.role],
                      decoder.seconds(_card(name))))
    return found


def _card(name: str) -> Card:
    card = find_card(name)
    assert card is not None, name
    return card


def page(quick: bool) -> str:
    """The whole page, in Markdown."""
    compared = published()
    rows = [f"| {what} | {theirs:.2f} s | {ours:.2f} s | {ours / theirs:.2f} |" for what, theirs, ours in compared]
    return "\n\n".join([
        "# Performance",
        "`python -m benchmarks --write` writes this page. What was measured here, what is estimated and what others "
        "published are kept apart. **Nothing of ours was measured on a GPU**; who has one can: "
        "`python -m benchmarks.card` takes at most 12 minutes, needs no download, and writes a report that can be "
        "pasted into an issue.",
        "## Measured here",
        f"On a CPU: {platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} "
        f"threads{', small sizes' if quick else ''}. Ratios are taken in one process, in turns; seconds depend on what "
        "else the machine did.",
        *measured(quick),
        "## Estimated",
        "By the work model (`magihuman_core/runtime/work.py`): operations and bytes are counted from the code itself "
        "on tensors without content, and agree with what torch counts within 2 and 10 percent "
        "(`tests/core/test_work.py`). "
        "Seconds follow from published peaks of the cards and assumed shares of them (`cards.py` beside it): plain / "
        "with elementwise work fused.",
        "\n".join(estimated()),
        "Memory is estimated in the same way (`memory.py`), within 5 percent of what tensors take on a pretended card "
        "(`tests/core/test_pretend_card.py`). README has a table of whole clips by the card's memory.",
        "## Published by others",
        f"![Published and estimated seconds]({PLOT.name})",
        "\n".join(["| | published | estimated, fused | ratio |", "|---|---:|---:|---:|", *rows]),
        "\n".join(f"- {source}" for source in SOURCES),
    ]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats")
    parser.add_argument("--write", action="store_true", help="keep the page as docs/performance.md")
    arguments = parser.parse_args()
    text = page(arguments.quick)
    if arguments.write:
        PAGE.write_text(text, encoding="utf-8")
        PLOT.write_text(bars(published(), ("published", "estimated")), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
