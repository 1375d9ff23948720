"""Telling whether weights on disk are still the ones that were read."""

import hashlib
import stat
from collections.abc import Iterator
from pathlib import Path

from .header import explain_read_errors, file_mode
from .shards import named_files
from .tensor_file import Stamp
from .weight_files import DEPTH, INDEX, is_file, shard_set, suffix, walk

HASHED = 1 << 20  # bytes from the beginning of a file: of weights the header


def fingerprint(path: str | Path) -> str:
    """A text that is another one when the weights at this path are others: for caches of what was loaded.

    path: a file, an index file (its shards count too) or a folder (all weights and JSON in it and below). Of each
    file name, size and time of change count, and its first megabyte, in which the header lies. Files are not read
    further, so this takes milliseconds. Raises CheckpointError where there is nothing, or it cannot be read.
    """
    path = Path(path)
    in_folder = stat.S_ISDIR(file_mode(path))
    digest = hashlib.sha256()
    for file in _files(path, in_folder):
        with explain_read_errors(file), file.open("rb") as opened:
            stamp = Stamp.of(opened.fileno())
            name = file.name if file == path else file.relative_to(path if in_folder else path.parent).as_posix()
            digest.update(f"{name}\0{stamp.size}\0{stamp.changed}\0".encode("utf-8", "surrogateescape"))
            digest.update(opened.read(HASHED))
    return digest.hexdigest()


def _files(path: Path, in_folder: bool) -> Iterator[Path]:
    """The files that count, in a fixed order."""
    if not in_folder:
        yield from shard_set(path) or [path]
        if path.name.endswith(INDEX):
            yield from (path.parent / name for name in sorted(named_files(path)) if is_file(path.parent / name))
        return
    for found in walk(path, DEPTH):
        if isinstance(found, OSError):
            with explain_read_errors(Path(found.filename)):
                raise found
        yield from (file for file in found.files if suffix(file) == ".json" or file in found.shards + found.single)
