"""A checkpoint in several safetensors files, with an index file or without."""

import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .header import (
    DOWNLOAD_AGAIN,
    MAX_HEADER,
    explain_format,
    explain_read_errors,
    file_format,
    file_mode,
    quoted,
    read_header,
)
from .json_file import read_json
from .lazy_tensor import LazyTensor
from .quantized import COMFY_TABLE, joined_tables
from .tensor_file import StoredTensor, TensorFile
from .weight_files import WeightFiles, first_shards


def open_index(path: Path, mapped: bool) -> Checkpoint:
    """Open the shards that an index file names. Raises CheckpointError."""
    index = _read_index(path)
    weight_map, metadata = index["weight_map"], index.get("metadata")
    shards = [_shard_path(path, name) for name in sorted(set(weight_map.values()))]
    missing = [shard.name for shard in shards if not stat.S_ISREG(file_mode(shard))]
    if missing:
        raise missing_files(path.parent, missing[0], len(missing), len(shards))
    texts = {str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {}
    opened = open_shards(path.parent, shards, mapped, weight_map, texts)
    return replace(opened, path=path, files=(path, *opened.files))


def open_shards(folder: Path, shards: list[Path], mapped: bool, weight_map: Mapping[str, str],
                metadata: Mapping[str, str]) -> Checkpoint:
    """All tensors of all shards. The index need not name every key (some tools add scales without it).

    weight_map: key -> name of its file, from an index, or empty. metadata: texts that win over those in the shards,
    whose tables of quantized layers are joined.
    Raises CheckpointError.
    """
    texts = dict(metadata)
    tables = [texts[COMFY_TABLE]] if COMFY_TABLE in texts else []
    entries: dict[str, LazyTensor] = {}
    where: dict[str, str] = {}
    for shard in shards:
        file, name = TensorFile(shard, mapped), shard.relative_to(folder).as_posix()
        tensors, metadata = read_header(shard)
        texts = {**metadata, **texts}
        tables += [metadata[COMFY_TABLE]] if COMFY_TABLE in metadata else []
        for key, info in tensors.items():
            wanted = weight_map.get(key)
            if key in entries and wanted is None:
                raise CheckpointError(f"{folder}: {quoted(key)} is in {where[key]} and in {name}. "
                                      "Keep the files of one model only in this folder.")
            if key not in entries or wanted == name:
                entries[key], where[key] = StoredTensor(file, info, key), name
    absent = [key for key in weight_map if key not in entries]
    if absent:
        raise CheckpointError(f"{folder}: the index names {len(absent)} tensors that no file holds, the first is "
                              f"{quoted(absent[0])}. Files and index are of different versions: download both again.")
    if len(tables) > 1:
        texts[COMFY_TABLE] = joined_tables(tables, str(folder))
    return Checkpoint(entries, str(folder), texts, shards[0], tuple(shards))


def sharded(found: WeightFiles, named: set[Path]) -> list[Path]:
    """What to open for each sharded checkpoint of a folder: its index, or its first shard, or the folder, where that
    stands for it.

    named: files that indexes of folders around this one name; those that the indexes here name are added.
    """
    listed = [named_files(index) for index in found.indexes]
    named |= {found.folder / name for names in listed for name in names}
    # Of an index that cannot be read, any of the shards may be.
    first = [shard for shard in first_shards(found.shards) if shard not in named] if all(listed) else []
    alone = len(first) == 1 and not found.indexes and not found.loose
    return [found.folder] if alone else found.indexes + first


def named_files(index: Path) -> set[str]:
    """The files that an index names; none where it cannot be read, which opening it explains."""
    try:
        return set(_read_index(index)["weight_map"].values())
    except CheckpointError:
        return set()


def missing_files(folder: Path, first: str, missing: int, count: int) -> CheckpointError:
    """The error for a folder where files of a checkpoint are not there."""
    return CheckpointError(f"{folder}: {missing} of {count} files are missing, the first is {first}. "
                           "Download the missing files into this folder.")


def _read_index(path: Path) -> dict:
    try:
        with explain_read_errors(path):
            index = read_json(path, MAX_HEADER)
        weight_map = index["weight_map"]
        if not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError("its weight_map is not a table of file names")
        return index
    except CheckpointError:  # a ValueError too
        raise
    except (ValueError, TypeError, KeyError, AttributeError):
        found = file_format(path)
        what = explain_format(path, found) if found in ("lfs", "html", "empty") else (
            f"{path}: is not a valid index of weight files. {DOWNLOAD_AGAIN}")
        raise CheckpointError(what) from None


def _shard_path(index: Path, name: str) -> Path:
    """The file an index names, which must lie inside the index's own folder."""
    refused = CheckpointError(f"{index}: names the file {quoted(name)}, which lies outside its folder. "
                              "Such an index is refused; get the model from its original place.")
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    if windows.drive or windows.root or posix.root or ".." in windows.parts or "\0" in name or not posix.name:
        raise refused
    try:
        folder, target = index.parent.resolve(), (index.parent / name).resolve()
        target.is_file()
    except (OSError, RuntimeError, ValueError):  # a loop of links; a name that is too long, or no text
        raise CheckpointError(f"{index}: names a file {quoted(name)}, which cannot be. {DOWNLOAD_AGAIN}") from None
    # Hugging Face's own cache is made of links from snapshots/<revision>/ to blobs/ beside it.
    cache = next((p.parent / "blobs" for p in folder.parents if p.name == "snapshots"), folder)
    if not target.is_relative_to(folder) and not target.is_relative_to(cache):
        raise refused
    return index.parent / name
