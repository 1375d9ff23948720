"""All benchmarks, each in a process of its own one after another, and the page docs/performance.md.

usage: python -m benchmarks [--quick] [--write]

Prints the page with tables as they are now. --write keeps it, with the plot beside it: tables stand between marks
(blocks.py), all other text stays as it is. Where a benchmark fails nothing is written, and it ends with 1.
(benchmarks.card is for machines with a graphics card, and writes a report of its own.)
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch

from magihuman_core import InputError
from magihuman_core.atomic import check_place, whole_file
from magihuman_core.runtime.work import ATTENTION, CONVOLUTION, MATRIX, Work, work
from magihuman_core.vae.turbo import TurboVAEConfig
from magihuman_core.vae.video import VideoVAEConfig

from .blocks import check_blocks, written
from .estimates import RECIPES, SECONDS, card_of, step_work
from .machine import processor
from .plot import bars
from .published import DECODING, SOURCES, STEPS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
MODULES = ("network", "attention", "decoding", "precision", "loading", "streaming", "parallel", "live")
CARDS = ("RTX 3060", "RTX 4090", "RTX 5090", "H100 80GB HBM3")


def measured(module: str, quick: bool) -> str | None:
    """The table of a module, in a process of its own, so that none has another's memory; None where it failed."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)  # noqa: S603
    return None if done.returncode else done.stdout.strip()


def machine(quick: bool) -> str:
    """What the measured figures depend on."""
    today = date.today()
    return (f"On a CPU: {processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
            f"{', small sizes' if quick else ''}, on {today.day} {today:%B %Y}.")


def estimated() -> Iterator[str]:
    """Work and times of the stages, by the work model."""
    cards = [card_of(name) for name in CARDS]
    yield (f"| {SECONDS} seconds | operations: matrices, attention, convolutions | moved, plain / fused | "
           f"{' | '.join(card.name for card in cards)} |")
    yield "|---|---|---|" + "---|" * len(cards)
    for name, found in stages():
        flops = ", ".join(f"{found.flops_of(kind) / 1e12:,.0f}" for kind in (MATRIX, ATTENTION, CONVOLUTION))
        times = " | ".join(f"{found.seconds(card):.2f} / {found.seconds(card, fused=True):.2f} s" for card in cards)
        yield (f"| {name} | {flops} TFLOP | {found.bytes / 1e9:,.0f} / {found.fused_bytes / 1e9:,.0f} GB | {times} |")


def stages() -> Iterator[tuple[str, Work]]:
    for recipe in RECIPES:
        yield f"step, {recipe.role}, {recipe.width}x{recipe.height}", step_work(recipe)
    for name, config in (("Turbo VAE", TurboVAEConfig()), ("Wan2.2 VAE", VideoVAEConfig())):
        for recipe in RECIPES:
            yield (f"{name}, {recipe.width}x{recipe.height}",
                   work(config, width=recipe.width, height=recipe.height, seconds=SECONDS))


def compared() -> list[tuple[str, float, float]]:
    """(what, published seconds, estimated seconds) of steps, fused as those of the publishers, and of decoding, where
    nothing is fused here."""
    found = []
    for name, figures in STEPS.items():
        for recipe in RECIPES:
            found.append((f"{name}, {recipe.role}", figures[recipe.role],
                          step_work(recipe).seconds(card_of(name), fused=True)))
    for name, figures in DECODING.items():
        for recipe in RECIPES:
            decoder = work(TurboVAEConfig(), width=recipe.width, height=recipe.height, seconds=SECONDS)
            found.append((f"{name}, decoding {recipe.width}x{recipe.height}", figures[recipe.role],
                          decoder.seconds(card_of(name))))
    return found


def published() -> Iterator[str]:
    yield "| | published | estimated: steps fused, decoding plain | ratio |"
    yield "|---|---:|---:|---:|"
    for what, theirs, ours in compared():
        yield f"| {what} | {theirs:.2f} s | {ours:.2f} s | {ours / theirs:.2f} |"
    yield ""
    yield from (f"- {source}" for source in SOURCES)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats")
    parser.add_argument("--write", action="store_true", help="keep the page as docs/performance.md")
    arguments = parser.parse_args(argv)
    page = PAGE.read_text(encoding="utf-8")
    try:
        check_blocks(page, ("machine", *MODULES, "estimated", "published"))
        if arguments.write:
            check_place(PAGE, "page")
    except InputError as error:
        parser.error(f"docs/{PAGE.name}: {error}")
    tables = {"machine": machine(arguments.quick), "estimated": "\n".join(estimated()),
              "published": "\n".join(published())}
    found = {module: measured(module, arguments.quick) for module in MODULES}
    failed = [module for module, table in found.items() if table is None]
    text = written(page, tables | {module: table or "failed" for module, table in found.items()})
    print(text)
    if failed:
        print(f"Failed: {', '.join(failed)}; what they said stands above. Nothing was written.", file=sys.stderr)
        return 1
    if arguments.write:
        for path, content in ((PAGE, text), (PAGE.with_suffix(".svg"), bars(compared(), ("published", "estimated")))):
            with whole_file(path) as file:
                file.write(content.encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
