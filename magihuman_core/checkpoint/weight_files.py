"""Which files of a folder hold weights, and which of them belong together: shards, with or without an index."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INDEX = ".safetensors.index.json"
READABLE = (".safetensors", ".gguf", ".ckpt")
REFUSED = (".pt", ".pth", ".bin", ".zst")  # not opened, but named in messages
DEPTH = 3  # folders below a given one that are searched
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class WeightFiles:
    """A folder's files, by name."""

    folder: Path
    files: list[Path]  # all of them, the following too
    indexes: list[Path]
    shards: list[Path]
    single: list[Path]  # other files of weights, by their ending
    subfolders: list[Path]

    @property
    def sharded(self) -> list[Path]:
        """What to open for the sharded checkpoints: their indexes, or the folder where there is none."""
        return self.indexes or ([self.folder] if self.shards else [])


def list_weight_files(folder: Path) -> WeightFiles:
    """Look into a folder. Of hidden files (and folders) none counts as weights. Raises OSError."""
    children = sorted(folder.iterdir())
    files = [child for child in children if not child.is_dir()]
    shown = [file for file in files if not file.name.startswith(".")]
    shards = [file for file in shown if SHARD.fullmatch(file.name)]
    single = [file for file in shown if file.suffix in READABLE + REFUSED and file not in shards]
    indexes = [file for file in shown if file.name.endswith(INDEX)]
    subfolders = [child for child in children if child.is_dir() and not child.name.startswith(".")]
    return WeightFiles(folder, files, indexes, shards, single, subfolders)


def walk(folder: Path, depth: int) -> Iterator[WeightFiles | OSError]:
    """A folder and those below it, `depth` deep. Where one cannot be read, the error comes in its place."""
    try:
        found = list_weight_files(folder)
    except OSError as error:
        yield error
        return
    yield found
    for subfolder in found.subfolders if depth else ():
        yield from walk(subfolder, depth - 1)
