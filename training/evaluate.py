"""Measure the demo weights on held-out prompts, and write the table into their card.

    python -m training.evaluate --clips 16                   # seeds 0 .. 15, none of which was trained on
    python -m training.evaluate --clips 4 --rows data reconstruction distilled
    python -m training.evaluate --folder magihuman_core/demo # the shipped weights instead of the run's export/

Every row makes the same prompts from the same noise and measures pictures and sounds alone (measure.py); rows.py says
how. The last rows are made wrongly on purpose: a measure that does not fall there would measure nothing.
"""

import argparse
import datetime
import json
import time
from pathlib import Path

import numpy as np
import torch

from magihuman_core import Guidance
from magihuman_core.atomic import whole_file
from training import measure
from training.common import TRAIN_SEEDS, Stop, contents_hash
from training.demo import Demo
from training.files import DEMO, refuse_demo
from training.options import add_options, command, number, set_up, whole
from training.rows import ROWS, Job

MARKS = "<!-- scores -->", "<!-- end of scores -->"  # around the table of a card


def scores(videos, waveforms, clips):
    """The measures every row has. videos may be larger than drawn: attributes and sync do not mind."""
    heard = [measure.read_syllables(waveform) for waveform in waveforms]
    asked = [[name for name, _, _ in clip.syllables] for clip in clips]
    seen = [measure.read_attributes(video) for video in videos]
    wanted = [clip.attributes for clip in clips]
    people = [clip.attributes["person"] for clip in clips]
    voices = [measure.read_person(waveform) == person for waveform, person in zip(waveforms, people, strict=True)]
    return {
        "sync": float(np.mean([measure.sync(v, s) for v, s in zip(videos, waveforms, strict=True)])),
        "shifted sync": float(np.mean([measure.shifted_sync(v, s) for v, s in zip(videos, waveforms, strict=True)])),
        "syllable errors": measure.syllable_error_rate(heard, asked),
        "attributes": measure.attribute_accuracy(seen, wanted),
        "voice": float(np.mean(voices)),
        "sharpness": float(np.mean([measure.sharpness(v) for v in videos])),
    }


def table(results):
    """The results as Markdown; a dash where a row has no such measure."""
    columns = ["sync", "shifted sync", "syllable errors", "attributes", "voice", "sharpness"]
    lines = ["| | " + " | ".join(columns) + " | more |", "|---" * (len(columns) + 2) + "|"]
    for name, row in results.items():
        more = ", ".join(f"{key} {value:.2f}" for key, value in row.items() if key not in columns)
        cells = ["-" if c not in row else f"{row[c]:.2f}" if c in ("sync", "shifted sync")
                 else f"{row[c]:.1f}" if c == "sharpness" else f"{100 * row[c]:.0f} %" for c in columns]  # fmt: skip
        lines.append(f"| {ROWS[name].label} | " + " | ".join(cells) + f" | {more} |")
    return "\n".join(lines)


def with_earlier_rows(path, made_with, results):
    """The rows of this and of earlier runs that were made alike, in order; kept in a file. Others are dropped.

    made_with: plain values, of which the weights are one. Raises Stop where the file is damaged.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        earlier = kept["rows"] if kept.get("made with") == made_with else {}
    except (ValueError, KeyError, AttributeError) as error:
        raise Stop(f"{path} is damaged ({error}): delete it.") from error
    if kept and not earlier:
        print(f"The rows in {path} were made with other weights or guidance, and are dropped.")
    rows = {**earlier, **results}
    rows = {name: rows[name] for name in ROWS if name in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(json.dumps({"made with": made_with, "rows": rows}).encode())
    return rows


def check_seeds(options):
    """Raises Stop where clips would be measured that were trained on."""
    if options.first_seed + options.clips > TRAIN_SEEDS:
        raise Stop(f"Seeds from {TRAIN_SEEDS} up are trained on: give a smaller --first-seed.")


def read_card(path):
    """(what stands before the table of a card, and after it); of a card of its own where there is none. Raises Stop."""
    card = path.read_text(encoding="utf-8") if path.exists() else "# Scores\n\n" + "\n".join(MARKS) + "\n"
    before, begin, rest = card.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (begin and end):
        raise Stop(f"{path} has no {' ... '.join(MARKS)}: put them where the table belongs.")
    return before, after


def write_card(path, stamp, text):
    """Put a table between the marks of a card."""
    before, after = read_card(path)
    with whole_file(path) as file:
        file.write(f"{before}{MARKS[0]}\n{stamp}\n\n{text}\n{MARKS[1]}{after}".encode())


@torch.inference_mode()
def evaluate(demo, seeds, names):
    """The numbers of these rows: {name: {measure: value}}; each is printed as soon as it is there."""
    results, jobs = {}, {}
    for name in names:
        started, row = time.monotonic(), ROWS[name]
        material = row.shape, row.seconds, row.quiet
        if material not in jobs:
            jobs[material] = Job(demo, seeds, *material)
        job = jobs[material]
        videos, waveforms, extra = row.make(job)
        found = scores(videos, waveforms, job.clips)
        results[name] = {**{key: value for key, value in found.items() if key not in row.given}, **extra}
        numbers = {key: round(value, 3) for key, value in results[name].items()}
        print(f"{name} ({time.monotonic() - started:.0f} s): {json.dumps(numbers)}", flush=True)
    return results


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=whole(2), default=16, help="two or more: controls take those of another clip")
    parser.add_argument("--first-seed", type=whole(0), default=0)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--folder", type=Path,
                        help=f"of the weights; default: export/ in the run's folder. The shipped ones: {DEMO}")
    parser.add_argument("--guidance", type=number, nargs=3, default=(5.0, 2.0, 5.0), help="video, late, audio")
    parser.add_argument("--card", action="store_true",
                        help="table into CARD.md in that folder, with earlier rows of the same weights")
    parser.add_argument("--overwrite-demo", action="store_true", help="with --card: also the card that is shipped")
    add_options(parser, seed=False)
    options = parser.parse_args()
    set_up(options)
    check_seeds(options)
    folder = options.folder or options.run / "export"
    if options.card:
        refuse_demo(folder, options.overwrite_demo)
        read_card(folder / "CARD.md")
    demo, guidance = Demo(folder, Guidance(*options.guidance)), ", ".join(f"{scale:g}" for scale in options.guidance)
    results = evaluate(demo, range(options.first_seed, options.first_seed + options.clips), options.rows)
    if options.card:
        path = options.run / f"scores_{options.first_seed}_{options.clips}.json"
        made_with = {"weights": contents_hash(*sorted(folder.rglob("*.safetensors"))), "guidance": guidance}
        results = with_earlier_rows(path, made_with, results)
    print(table(results))
    if options.card:
        last = options.first_seed + options.clips - 1
        stamp = (f"Seeds {options.first_seed} to {last}, guidance {guidance}, {datetime.date.today().isoformat()}, "
                 "`training/evaluate.py`.")  # fmt: skip
        write_card(folder / "CARD.md", stamp, table(results))


if __name__ == "__main__":
    main()
