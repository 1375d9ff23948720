"""What a run leaves to look at: numbers in log.jsonl, their curves, contact sheets.

    python -m training.journal training/runs/demo/base       # draws curves.png anew
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image

from magihuman_core.atomic import whole_file
from training.common import RowWriter, Stop, duration, read_rows
from training.options import command

PLAIN = ("step", "seconds", "clips_per_second")  # the last is in older logs


class Means:
    """Of named numbers; not every kind of step has every number."""

    def __init__(self):
        self.sums, self.counts = {}, {}

    def add(self, numbers):
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
            self.counts[name] = self.counts.get(name, 0) + 1

    def values(self):
        return {name: value / self.counts[name] for name, value in self.sums.items()}


class Journal:
    """Means of named numbers between two lines; a line for the eye and one for log.jsonl."""

    def __init__(self, folder, step):
        self.folder, self.path = folder, folder / "log.jsonl"
        rows = read_rows(self.path)
        kept = [row for row in rows if row["step"] <= step]  # later ones will be made again
        if kept != rows:
            with whole_file(self.path) as file:
                file.write("".join(json.dumps(row) + "\n" for row in kept).encode())
        self.writer = RowWriter(self.path)
        self.restart()

    def restart(self):
        self.means, self.count, self.since = Means(), 0, time.monotonic()

    def add(self, **numbers):
        self.count += 1
        self.means.add(numbers)

    def write(self, step, steps, seconds, validation):
        """seconds: of the whole run so far. validation: means over held-out clips."""
        each = (time.monotonic() - self.since) / self.count
        row = {"step": step, **self.means.values(), **{f"held-out {name}": v for name, v in validation.items()}}
        self.writer.write({**row, "seconds": round(seconds, 1)})
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
        print(f"{self.folder.name} {step}/{steps}  {numbers}  {each:.2f} s/step  "
              f"{duration((steps - step) * each)} left", flush=True)  # fmt: skip
        self.restart()

    def draw_curves(self):
        draw_curves(self.folder)


def draw_curves(folder):
    """Draw all numbers of log.jsonl against steps: curves.png. Nothing where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    rows = read_rows(folder / "log.jsonl")
    if not rows:
        raise Stop(f"{folder} holds no log.jsonl with a line in it: give the folder of a stage that was trained.")
    names = sorted({name for row in rows for name in row if not name.startswith("held-out ")} - set(PLAIN))
    figure = Figure(figsize=(4 * len(names), 3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(np.ravel(figure.subplots(1, len(names))), names, strict=True):
        for key, style in ((name, ".-"), (f"held-out {name}", "o--")):
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=key, markersize=3)
        if name != "rate" and all(row.get(name, 1) > 0 for row in rows):
            axes.set_yscale("log")
        axes.set_title(name)
        axes.legend(fontsize=7)
    figure.savefig(folder / "curves.png", dpi=80)


def write_sheet(path, rows):
    """One picture of several rows of pictures, uint8 [n, H, W, 3] each, all of one size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    Image.fromarray(sheet).save(path)


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    draw_curves(parser.parse_args().folder)


if __name__ == "__main__":
    main()
