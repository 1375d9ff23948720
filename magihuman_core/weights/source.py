"""Opening a checkpoint: a file, a folder of shards, an index file, or a mapping of tensors."""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint, Entry, from_tensors
from ..checkpoint.gguf_file import open_gguf
from ..checkpoint.header import DOWNLOAD_AGAIN, MAX_HEADER, explain_format, file_format, quoted, read_header
from ..checkpoint.pickled import open_training_checkpoint
from ..checkpoint.quantized import dequantized
from ..checkpoint.tensor_file import TensorFile
from ..errors import CheckpointError
from .diffusers_names import original_names
from .layouts import official_network
from .recognize import require_kind

INDEX = ".safetensors.index.json"
INDEX_NAMES = ("model" + INDEX, "diffusion_pytorch_model" + INDEX)
# Where a diffusers-style folder keeps each kind.
PARTS = {
    None: ("transformer",),
    "network": ("transformer",),
    "text_encoder": ("text_encoder",),
    "video_vae": ("vae",),
    "audio_vae": ("audio_vae", "vae"),
    "turbo_vae": ("turbo_vae",),
}
ROLE_FOLDERS = ("base", "distill", "540p_sr", "1080p_sr", "sr_540p", "sr_1080p")
OTHER_FORMATS = (".ckpt", ".pt", ".pth", ".bin", ".gguf", ".zst")
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")


def open_checkpoint(
    source: str | Path | Mapping[str, Tensor],
    kind: str | None = None,
    *,
    mapped: bool = False,
    raw: bool = False,
    allow_pickle_checkpoint: bool = False,
) -> Checkpoint:
    """Open weights for reading; only headers are read here. Quantized weights are decoded as they are read.

    source: a .safetensors or .gguf file, a *.safetensors.index.json, a folder that holds either (or shards without
    an index, or a diffusers-style folder around it), or a mapping from names to tensors.
    kind: what is wanted, a key of recognize.KINDS: anything else is refused, and in a diffusers-style folder
    it chooses the part. A "network" in any layout, and a VAE from diffusers, get their official names.
    mapped: tensors whose dtype is kept are views of the file instead of copies (private: writing into them
    does not change the file).
    raw: give names and tensors as they are stored.
    allow_pickle_checkpoint: also take the Turbo VAE's training checkpoint (.ckpt), by torch.load with
    weights_only, which runs no code; its averaged weights are given.
    Raises CheckpointError with the file and the remedy.
    """
    checkpoint = _open(source, kind, mapped, allow_pickle_checkpoint)
    if kind is not None:
        require_kind(checkpoint, kind)
    if raw:
        return checkpoint
    if kind == "network":
        return official_network(checkpoint)
    return original_names(dequantized(checkpoint), kind)


def _open(source: str | Path | Mapping, kind: str | None, mapped: bool, allow_pickle: bool) -> Checkpoint:
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, Mapping):
        return from_tensors(source)
    path = Path(source)
    if path.is_dir():
        path = _find_in_folder(path, kind)
        if isinstance(path, list):
            return _open_shards(path[0].parent, path, {}, {}, mapped)
    elif not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder. Check the name.")
    if path.name.endswith(".index.json"):
        return _open_index(path, mapped)
    found = file_format(path)
    if found == "gguf":
        return open_gguf(path)
    if allow_pickle and found == "pickle":
        return open_training_checkpoint(path)
    return _open_file(path, mapped)


def _open_file(path: Path, mapped: bool) -> Checkpoint:
    header = read_header(path)
    file = TensorFile(path, mapped)
    entries = {key: file.entry(info) for key, info in header.tensors.items()}
    return Checkpoint(entries, str(path), header.metadata, path)


def _find_in_folder(folder: Path, kind: str | None = None) -> Path | list[Path]:
    """The file that stands for a folder: its index, its only weight file, or the list of its shards."""
    indexes = sorted(folder.glob("*" + INDEX))
    for index in indexes:
        if index.name in INDEX_NAMES or len(indexes) == 1:
            return index
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1 and not SHARD.fullmatch(files[0].name):
        return files[0]
    if files:
        return _complete_shards(folder, files)
    for part in PARTS.get(kind, ()):
        if (folder / part).is_dir():
            return _find_in_folder(folder / part)
    roles = [name for name in ROLE_FOLDERS if (folder / name).is_dir()]
    if roles:
        raise CheckpointError(f"{folder}: holds several models: {', '.join(roles)}. Choose one of these.")
    others = sorted(p for p in folder.iterdir() if p.suffix in OTHER_FORMATS)
    if len(others) == 1:
        return others[0]
    raise CheckpointError(f"{folder}: holds no .safetensors file. Give the file or folder with the weights.")


def _complete_shards(folder: Path, files: list[Path]) -> list[Path]:
    matches = [SHARD.fullmatch(path.name) for path in files]
    sets = {(m[1], m[3]) for m in matches if m}
    if not all(matches) or len(sets) != 1:
        names = ", ".join(path.name for path in files[:5]) + (", ..." if len(files) > 5 else "")
        raise CheckpointError(f"{folder}: holds several weight files: {names}. Choose one of them.")
    (stem, count) = sets.pop()
    missing = sorted(set(range(1, int(count) + 1)) - {int(m[2]) for m in matches})
    if missing:
        first = f"{stem}-{missing[0]:05d}-of-{count}.safetensors"
        raise _missing_files(folder, first, len(missing), int(count))
    return files


def _missing_files(folder: Path, first: str, missing: int, count: int) -> CheckpointError:
    return CheckpointError(f"{folder}: {missing} of {count} files are missing, the first is {first}. "
                           "Download the missing files into this folder.")


def named_files(index: Path) -> set[str]:
    """The files that an index names; none where it cannot be read, which opening it explains."""
    try:
        return set(_read_index(index)["weight_map"].values())
    except CheckpointError:
        return set()


def _read_index(path: Path) -> dict:
    try:
        if path.stat().st_size > MAX_HEADER:
            raise ValueError("it is too large")
        index = json.loads(path.read_bytes())
        weight_map = index["weight_map"]
        if not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError("its weight_map is not a table of file names")
        return index
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        found = file_format(path)
        what = explain_format(path, found) if found in ("lfs", "html", "empty") else (
            f"{path}: is not a valid index of weight files. {DOWNLOAD_AGAIN}")
        raise CheckpointError(what) from None


def _open_index(path: Path, mapped: bool) -> Checkpoint:
    """Open the shards that an index file names."""
    index, folder = _read_index(path), path.parent
    weight_map = index["weight_map"]
    shards = [_shard_path(path, name) for name in sorted(set(weight_map.values()))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise _missing_files(folder, missing[0], len(missing), len(shards))
    metadata = index.get("metadata")
    texts = {str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {}
    return _open_shards(folder, shards, weight_map, texts, mapped)


def _shard_path(index: Path, name: str) -> Path:
    """The file an index names, which must lie inside the index's own folder."""
    refused = CheckpointError(f"{index}: names the file {quoted(name)}, which lies outside its folder. "
                              "Such an index is refused; get the model from its original place.")
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    if windows.drive or windows.root or posix.root or ".." in windows.parts or "\0" in name or not posix.name:
        raise refused
    try:
        folder, target = index.parent.resolve(), (index.parent / name).resolve()
    except (OSError, RuntimeError):  # a loop of links
        raise refused from None
    # Hugging Face's own cache is made of links from snapshots/<revision>/ to blobs/ beside it.
    cache = next((p.parent / "blobs" for p in folder.parents if p.name == "snapshots"), folder)
    if not target.is_relative_to(folder) and not target.is_relative_to(cache):
        raise refused
    return index.parent / name


def _open_shards(folder: Path, shards: list[Path], weight_map: Mapping[str, str],
                 metadata: dict[str, str], mapped: bool) -> Checkpoint:
    """All tensors of all shards. The index need not name every key (some tools add scales without it)."""
    entries: dict[str, Entry] = {}
    where: dict[str, str] = {}
    for shard in shards:
        header = read_header(shard)
        metadata = {**header.metadata, **metadata}
        file = TensorFile(shard, mapped)
        name = shard.relative_to(folder).as_posix()
        for key, info in header.tensors.items():
            wanted = weight_map.get(key)
            if key in entries and wanted is None:
                raise CheckpointError(f"{folder}: {quoted(key)} is in {where[key]} and in {name}. "
                                      "Keep the files of one model only in this folder.")
            if key not in entries or wanted == name:
                entries[key], where[key] = file.entry(info), name
    absent = [key for key in weight_map if key not in entries]
    if absent:
        raise CheckpointError(f"{folder}: the index names {len(absent)} tensors that no file holds, the first is "
                              f"{quoted(absent[0])}. Files and index are of different versions: download both again.")
    return Checkpoint(entries, str(folder), metadata, folder)
