"""What all training scripts share: options, errors, threads and seeds, precision, hashes, rows on disk, progress."""

import argparse
import functools
import hashlib
import json
import math
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from magihuman_core.errors import CheckpointError, InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

RUNS = Path(__file__).parent / "runs"
TRAIN_SEEDS = 100_000  # first seed of the training clips; everything below is held out for evaluation


class Stop(SystemExit):
    """One clear sentence for whoever started the program, which ends with it and exit status 1."""


def command(main):
    """A program's `main`: what its user can mend ends it with one sentence, as Stop does, and not with a traceback."""

    @functools.wraps(main)
    def run():
        try:
            main()
        except (InputError, CheckpointError) as error:
            raise Stop(str(error)) from error
        except OSError as error:
            name = f"{error.filename}: " if error.filename else ""
            raise Stop(f"{name}{error.strerror or error}. Check the file and the space on its disk.") from error

    return run


def whole(least, most=2**63 - 1):
    """The type of an option: a whole number in these limits."""

    def read(text):
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not least <= number <= most:
            limits = f"of {least} or more" if most == 2**63 - 1 else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not possible, expected a whole number {limits}")
        return number

    return read


def number(text):
    """The type of an option: a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not possible, expected a number")
    return value


def positive(text):
    """The type of an option: a finite number above 0."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not possible, expected a number above 0")
    return value


def device(text):
    """The type of an option: a device that torch can compute on here."""
    try:
        torch.ones(1, device=text).sum().item()
    except Exception as error:  # every backend has errors of its own
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here ({str(error).splitlines()[0]}), expected "
                                         "a device of this machine, such as cpu") from error  # fmt: skip
    return text


def add_options(parser, *, run=True, threads=True, seed=True, steps=None, rate=None, batch=None):
    """The options that most stages have; those of `fit` where steps are given. run, threads, seed: which of them."""
    if run:
        parser.add_argument("--run", type=lambda name: RUNS / name, default=RUNS / "demo",
                            help="folder of the run: a name below training/runs, or an absolute path (default demo)")
    if threads:
        parser.add_argument("--threads", type=whole(1), default=torch.get_num_threads(), help="default: all cores")
    if seed:
        parser.add_argument("--seed", type=whole(0), default=0)
    if steps is None:
        return
    parser.add_argument("--steps", type=whole(1), default=steps, help=f"of the whole stage (default {steps})")
    parser.add_argument("--minutes", type=positive, help="stop earlier, after so many minutes of this call")
    parser.add_argument("--rate", type=positive, default=rate, help="highest learning rate")
    if batch:
        parser.add_argument("--batch", type=whole(1), default=batch)
    else:
        parser.set_defaults(batch=None)
    parser.add_argument("--save-every", type=whole(1), default=500, help="steps")


def set_up(options):
    """Threads and seed as asked for; denormals only cost time."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    if "seed" in options:
        torch.manual_seed(options.seed)


@contextmanager
def alone(folder):
    """While the block runs, no other process writes into a folder, which is made. Raises Stop where one does.

    The lock goes with the process, however that ends. Where there are no locks (Windows) nothing is kept out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Stop(f"Another process is writing into {folder}: wait for it, or end it first.") from error
        except OSError:  # a file system without locks
            pass
        yield


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


def contents_hash(*paths):
    """Twelve hexadecimal digits that tell the bytes of these files, one after the other, from others."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()[:12]


def files_hash(*paths):
    """The same of large files, or folders of them, such as weights, without reading all of them.

    Of each 64 parts of 64 KiB are read: other weights are others everywhere, and nobody waits for 30 GB.
    """
    digest, part, count = hashlib.sha256(), 1 << 16, 64
    for path in paths:
        for file in sorted(found for found in path.rglob("*") if found.is_file()) if path.is_dir() else [path]:
            size = file.stat().st_size
            digest.update(str(size).encode())
            with file.open("rb") as opened:
                for place in range(count):
                    opened.seek(max(0, size - part) * place // (count - 1))
                    digest.update(opened.read(part))
    return digest.hexdigest()[:12]


def read_rows(path):
    """The complete lines of a file with one JSON value a line; a last line that was torn off does not count."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
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
        self.file = path.open("a", encoding="utf-8")

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
