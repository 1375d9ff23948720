"""What all training scripts share: folders of runs, errors, threads and seeds, precision, rows on disk, progress."""

import hashlib
import json
import time
from pathlib import Path

import torch

RUNS = Path(__file__).parent / "runs"
TRAIN_SEEDS = 100_000  # first seed of the training clips; everything below is held out for evaluation


class Stop(SystemExit):
    """One clear sentence for whoever started the program, which ends with it and exit status 1."""


def add_options(parser, *, steps=None, rate=None, batch=None):
    """The options that all stages have; those of `fit` where steps are given."""
    parser.add_argument("--run", type=lambda name: RUNS / name, default=RUNS / "demo",
                        help="folder of the run: a name below training/runs, or an absolute path (default demo)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: all cores")
    parser.add_argument("--seed", type=int, default=0)
    if steps is None:
        return
    parser.add_argument("--steps", type=int, default=steps, help=f"of the whole stage (default {steps})")
    parser.add_argument("--minutes", type=float, help="stop earlier, after so many minutes of this call")
    parser.add_argument("--rate", type=float, default=rate, help="highest learning rate")
    if batch:
        parser.add_argument("--batch", type=int, default=batch)
    else:
        parser.set_defaults(batch=None)
    parser.add_argument("--save-every", type=int, default=500, help="steps")


def set_up(options):
    """Threads and seed as asked for; denormals only cost time."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(options.seed)


def has_amx():
    """Whether the processor multiplies bf16 matrices in hardware."""
    ask = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(ask and ask())


def autocast():
    """Autocast to bf16 where that is faster: with AMX. Without, even processors that know bf16 are slower with it.

    Convolutions over time must be those of fast_conv.py: on processors with AMX the weight gradient of some
    torch.nn.Conv3d in bf16 is wrong.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=has_amx())


def weights_hash(*modules):
    """Twelve hexadecimal digits that tell these weights from others."""
    digest = hashlib.sha256()
    for module in modules:
        for key, tensor in module.state_dict().items():
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def read_rows(path):
    """The complete lines of a file with one JSON value a line; a last line that was torn off does not count."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise Stop(f"{path} is damaged ({error}): delete its folder and make it again.") from error


class RowWriter:
    """Appends JSON lines to a file, after its last complete line."""

    def __init__(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
        self.file = path.open("a")

    def write(self, row):
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


class Progress:
    """Says every few seconds how far a long loop is, its speed, and when it will be done."""

    def __init__(self, what, done, total, seconds=10.0):
        self.what, self.done, self.total, self.seconds = what, done, total, seconds
        self.first, self.started = done, time.monotonic()
        self.said = self.started

    def step(self):
        self.done += 1
        now = time.monotonic()
        if now - self.said < self.seconds and self.done < self.total:
            return
        self.said = now
        speed = (self.done - self.first) / max(1e-9, now - self.started)
        left = (self.total - self.done) / speed
        print(f"{self.done} of {self.total} {self.what}, {speed:.1f} a second, {duration(left)} left", flush=True)


def duration(seconds):
    """As text: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
