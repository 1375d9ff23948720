"""What all training scripts share: errors, locks, precision, hashes, rows on disk, progress."""

import hashlib
import json
import time
from contextlib import contextmanager

import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TRAIN_SEEDS = 100_000  # first seed of the training clips; everything below is held out for evaluation


class Stop(SystemExit):
    """One clear sentence for whoever started the program, which ends with it and exit status 1."""


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
