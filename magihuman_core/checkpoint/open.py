"""Opening weights by their file format: a file, a folder of shards, an index file, or a mapping of tensors."""

import logging
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError
from .checkpoint import Checkpoint, as_checkpoint, renamed
from .gguf_file import open_gguf
from .header import explain_read_errors, file_format, file_mode, read_header
from .pickled import open_training_checkpoint
from .quantized import COMFY_TABLE
from .shards import missing_files, open_index, open_shards
from .tensor_file import StoredTensor, TensorFile
from .weight_files import INDEX, SHARD, UNFINISHED, is_file, is_folder, list_weight_files, shard_set, suffix

log = logging.getLogger(__name__)

# What training puts into the names of layers.
WRAPPED = "wrapped"  # in the metadata: names were changed so
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
INDEX_NAMES = ("model" + INDEX, "diffusion_pytorch_model" + INDEX)


def open_stored(source: str | Path | Mapping[str, Tensor], *, subfolders: Sequence[str] = (),
                models: Sequence[str] = (), mapped: bool = False, allow_pickle: bool = False) -> Checkpoint:
    """Open weights with names and tensors as they are stored; only headers are read.

    source: a .safetensors or .gguf file, a *.safetensors.index.json, a shard, which stands for all of its
    checkpoint, a folder that holds either, or a mapping from names to tensors.
    subfolders: names of folders to look into where the given one holds no weights itself; models: names of folders
    which hold a model each, so that an error can ask to choose.
    mapped: tensors whose dtype is kept are views of the file instead of copies. allow_pickle: also take a training
    checkpoint, without running code of it. Raises CheckpointError with the file and the remedy.
    """
    if isinstance(source, Mapping):
        return without_wrappers(as_checkpoint(source))
    return without_wrappers(_open(Path(source), subfolders, models, mapped, allow_pickle))


def without_wrappers(checkpoint: Checkpoint) -> Checkpoint:
    """The same under the names that its layers have without torch.compile, FSDP or checkpointing around them."""
    if not any(wrapper in key for key in checkpoint for wrapper in WRAPPERS):
        return checkpoint
    found = renamed(checkpoint, unwrapped)
    if len(found) < len(checkpoint):
        raise CheckpointError(f"{checkpoint.name}: holds tensors twice, with and without {WRAPPERS[0]} in their names. "
                              "Choose another file.")
    texts = {name: unwrapped(text) if name == COMFY_TABLE else text for name, text in found.metadata.items()}
    return replace(found, metadata={**texts, WRAPPED: "yes"})


def unwrapped(key: str) -> str:
    """A layer's name without what training put into it."""
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def _open(path: Path, subfolders: Sequence[str], models: Sequence[str], mapped: bool, allow_pickle: bool) -> Checkpoint:
    mode = file_mode(path)
    if stat.S_ISDIR(mode):
        found = _find_in_folder(path, subfolders, models)
        if isinstance(found, list):
            return open_shards(found[0].parent, found, mapped, {}, {})
        path = found
    elif not mode:
        raise CheckpointError(f"{path}: there is no such file or folder. Check the name.")
    _check_finished(path)
    if shards := shard_set(path):
        return open_shards(path.parent, _complete_shards(path.parent, shards), mapped, {}, {})
    if path.name.lower().endswith(".index.json"):
        return open_index(path, mapped)
    kind = file_format(path)
    if kind == "gguf":
        return open_gguf(path)
    if allow_pickle and kind == "pickle":
        return open_training_checkpoint(path)
    file = TensorFile(path, mapped)
    tensors, metadata = read_header(path)
    entries = {key: StoredTensor(file, info, key) for key, info in tensors.items()}
    return Checkpoint(entries, str(path), metadata, path, (path,))


def _check_finished(path: Path) -> None:
    """Say that a download is not finished: raise CheckpointError, or where it may be a left-over, warn."""
    if suffix(path) in UNFINISHED:
        raise CheckpointError(f"{path}: is a download that is not finished. Let it finish, or download it again.")
    for ending in UNFINISHED:
        beside = path.with_name(path.name + ending)
        if is_file(beside):
            if ending == ".aria2":  # which gives a file its full size at once, and fills it later
                raise CheckpointError(f"{path}: its download is not finished, as {beside.name} beside it says. Let it "
                                      "finish.")
            log.warning("%s: %s lies beside it: make sure that the download is finished, or delete that.", path,
                        beside.name)


def _find_in_folder(folder: Path, subfolders: Sequence[str], models: Sequence[str]) -> Path | list[Path]:
    """The file that stands for a folder: its index, its only weight file, or the list of its shards."""
    with explain_read_errors(folder):
        found = list_weight_files(folder)
    for index in found.indexes:
        if index.name in INDEX_NAMES or len(found.indexes) == 1:
            return index
    if len(found.loose) == 1 and not found.shards:
        return found.loose[0]
    if found.loose or found.shards:
        return _complete_shards(folder, sorted(found.loose + found.shards))
    for name in subfolders:
        if is_folder(folder / name):
            return _find_in_folder(folder / name, (), models)
    present = [name for name in models if is_folder(folder / name)]
    if present:
        raise CheckpointError(f"{folder}: holds several models: {', '.join(present)}. Choose one of these.")
    if len(found.single) == 1:
        return found.single[0]
    raise CheckpointError(f"{folder}: holds no .safetensors file. Give the file or folder with the weights.")


def _complete_shards(folder: Path, files: list[Path]) -> list[Path]:
    matches = [match for path in files if (match := SHARD.fullmatch(path.name))]
    sets = {(match[1], match[3]) for match in matches}
    if len(matches) < len(files) or len(sets) != 1:
        names = ", ".join(path.name for path in files[:5]) + (", ..." if len(files) > 5 else "")
        raise CheckpointError(f"{folder}: holds several weight files: {names}. Choose one of them.")
    (stem, count) = sets.pop()
    missing = sorted(set(range(1, int(count) + 1)) - {int(match[2]) for match in matches})
    if missing:
        raise missing_files(folder, f"{stem}-{missing[0]:05d}-of-{count}.safetensors", len(missing), int(count))
    return files
