"""Which files of a folder hold weights, and which of them belong together: shards, with or without an index."""

import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from .header import explain_read_errors

INDEX = ".safetensors.index.json"
SAFETENSORS = (".safetensors", ".sft")  # the second one is ComfyUI's short form
READABLE = (*SAFETENSORS, ".gguf", ".ckpt")
REFUSED = (".pt", ".pth", ".bin", ".zst")  # not opened, but named in messages
UNFINISHED = (".part", ".incomplete", ".crdownload", ".download", ".aria2", ".tmp")  # of downloads
DEPTH = 3  # folders below a given one that are searched, and
HUB_DEPTH = 3  # those that Hugging Face's cache puts around a model: models--OWNER--NAME/snapshots/REVISION
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors", re.IGNORECASE)


@dataclass(frozen=True)
class WeightFiles:
    """A folder's files, by name."""

    folder: Path
    files: list[Path]  # all of them, the following too
    indexes: list[Path]
    shards: list[Path]
    single: list[Path]  # other files of weights, by their ending
    subfolders: list[Path]
    unsearched: list[Path] = field(default_factory=list)  # of these, those that `walk` does not look into

    @property
    def loose(self) -> list[Path]:
        """Safetensors files that are no shards by their names."""
        return [path for path in self.single if suffix(path) in SAFETENSORS]


def list_weight_files(folder: Path) -> WeightFiles:
    """Look into a folder. Hidden files and folders are passed over, and all that is neither, such as pipes.

    Raises OSError.
    """
    shown = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    kinds = {child: _mode(child) for child in shown}
    # A link that leads nowhere is kept: opening it says so.
    files = [child for child in shown if stat.S_ISREG(kinds[child]) or stat.S_ISLNK(kinds[child])]
    shards = [file for file in files if SHARD.fullmatch(file.name)]
    single = [file for file in files if suffix(file) in READABLE + REFUSED and file not in shards]
    indexes = [file for file in files if file.name.lower().endswith(INDEX)]
    return WeightFiles(folder, files, indexes, shards, single, [child for child in shown if stat.S_ISDIR(kinds[child])])


def shard_set(path: Path) -> list[Path]:
    """A shard of several and the others of its checkpoint that lie beside it, in their order; [] for other files.

    Raises CheckpointError.
    """
    shard = SHARD.fullmatch(path.name)
    if shard is None or int(shard[3]) < 2 or not is_file(path):
        return []
    with explain_read_errors(path.parent):
        return sorted(file for file in path.parent.iterdir()
                      if (other := SHARD.fullmatch(file.name)) and (other[1], other[3]) == (shard[1], shard[3]))


def first_shards(files: Iterable[Path]) -> list[Path]:
    """The first shard that is there of each checkpoint in shards."""
    found: dict[tuple[Path, str, str], Path] = {}
    for file in sorted(files):
        if shard := SHARD.fullmatch(file.name):
            found.setdefault((file.parent, shard[1], shard[3]), file)
    return list(found.values())


def suffix(path: Path) -> str:
    """A file's ending in small letters, as it counts here."""
    return path.suffix.lower()


def is_file(path: Path) -> bool:
    """Whether a file is there. One beside another that may not be looked at, or cannot be, is not."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether a folder is there, as for is_file."""
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    """The mode of a file, or of what a link leads to; of a link that leads nowhere its own; 0 of what is hidden."""
    for look in (path.stat, path.lstat):
        with suppress(OSError, ValueError):  # the second of what cannot be a name
            return look().st_mode
    return 0


def walk(folder: Path, depth: int, hub_depth: int = HUB_DEPTH) -> Iterator[WeightFiles | OSError]:
    """A folder and those below it, `depth` deep, and `hub_depth` more in a cache of Hugging Face's.

    Where one cannot be read, the error comes in its place.
    """
    try:
        found = list_weight_files(folder)
    except OSError as error:
        yield error
        return
    free = [sub for sub in found.subfolders if hub_depth and (
        sub.name.startswith("models--") or "snapshots" in (sub.name, folder.name))]
    yield found if depth else replace(found, unsearched=[sub for sub in found.subfolders if sub not in free])
    for subfolder in found.subfolders:
        if subfolder in free:
            yield from walk(subfolder, depth, hub_depth - 1)
        elif depth:
            yield from walk(subfolder, depth - 1, hub_depth)
