"""What this machine's graphics card does with MagiHuman: is it right, how fast, how much memory.

usage: python -m benchmarks.card [--quick] [--device cuda] [--out FOLDER]

Needs no download: weights of the released shapes are random, and made on the device. Takes at most 12 minutes (--quick:
about three). Writes card.md, to be pasted into an issue, and card.json with the same figures. Without a GPU small
models run on the CPU, which shows that everything works and says nothing about speed. Ends with 1 where a check failed.
"""

import argparse
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path

import torch

from magihuman_core import InputError
from magihuman_core.pipeline.parts import choose_device
from magihuman_core.runtime.cards import this_card

from . import paths, speed
from .measure import Row, table

NO_GPU = "No GPU was found: small models on the CPU, whose times say nothing about the real ones."
MINUTES, QUICK_MINUTES = 9, 3  # for the measurements of speed; checks take less than two more


def environment(device: torch.device) -> dict[str, str]:
    """What the figures depend on."""
    found = {"torch": torch.__version__, "python": platform.python_version(), "system": platform.platform()}
    if device.type != "cuda":
        return {"device": "CPU"} | found
    card, properties = this_card(device), torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "memory": f"{properties.total_memory / 2**30:.1f} GiB, {torch.cuda.mem_get_info(device)[0] / 2**30:.1f} free",
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "bf16": str(torch.cuda.is_bf16_supported()),
        "CUDA or ROCm": str(torch.version.cuda or torch.version.hip),
        "known card": card.name if card else "no: shares of its peak and times are not estimated",
    } | found


def report(facts: dict[str, str], checks: list[Row], figures: list[Row], taken: float) -> str:
    """Markdown."""
    failed = sum(row.failed for row in checks)
    verdict = f"**{failed} of {len(checks)} checks failed.**" if failed else (
        f"All checks passed ({sum(row.value is not None for row in checks)}, of {len(checks)}).")
    parts = [f"## MagiHuman on {facts['device']}", NO_GPU if facts["device"] == "CPU" else "",
             "\n".join(f"- {name}: {value}" for name, value in facts.items()), verdict,
             "### Correctness: relative errors", table(checks), "### Speed and memory, 5 seconds of video"
             if facts["device"] != "CPU" else "### Speed, small models", table(figures), f"Took {taken:.0f} s."]
    return "\n\n".join(filter(None, parts)) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one block of each kind, and fewer repeats")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where the report goes")
    arguments = parser.parse_args(argv)
    try:
        device = choose_device(arguments.device)
    except InputError as error:
        parser.error(str(error))
    if device.type == "cpu":
        print(NO_GPU)
    start = time.perf_counter()
    facts, checks = environment(device), paths.rows(arguments.quick, device)
    figures = speed.rows(arguments.quick, device, QUICK_MINUTES if arguments.quick else MINUTES)
    text = report(facts, checks, figures, time.perf_counter() - start)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "card.md").write_text(text, encoding="utf-8")
    content = {"environment": facts, "checks": list(map(asdict, checks)), "figures": list(map(asdict, figures))}
    (arguments.out / "card.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    print(text)
    print(f"Written to {arguments.out / 'card.md'} and card.json; please paste card.md into an issue.")
    return int(any(row.failed for row in checks))


if __name__ == "__main__":
    raise SystemExit(main())
