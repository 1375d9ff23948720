"""Choices of weight files in ComfyUI's model folders, and the way back from a choice to a path."""

from contextlib import suppress
from pathlib import Path, PurePosixPath

import folder_paths

from ..magihuman_core.checkpoint.fingerprint import fingerprint
from ..magihuman_core.checkpoint.shards import sharded
from ..magihuman_core.checkpoint.weight_files import (
    READABLE,
    REFUSED,
    SHARD,
    first_shards,
    is_file,
    is_folder,
    list_weight_files,
)
from ..magihuman_core.errors import InputError

DEMO = "built-in demo"
BESIDE_WEIGHTS = "beside the weights"


def choices(folder: str) -> list[str]:
    """The demo, then every file of a model folder; the shards of one model as the folder they lie in, with a slash,
    or where that is the model folder itself or holds several, as the first of them or their index.
    """
    found = _names(folder)
    return [DEMO, *sorted(found, key=lambda name: (not name.endswith("/"), name))]


def resolve(folder: str, choice: str) -> Path:
    """The path of a choice. Raises InputError for anything that is not offered, such as a path with '..'."""
    name = _names(folder).get(choice)
    if name is None:
        raise InputError(f"{choice!r} is not in ComfyUI's {folder} folder. Put the file there, press R to refresh, and "
                         "choose it again.")
    path = Path(folder_paths.get_full_path_or_raise(folder, name))
    return path.parent if choice.endswith("/") else path


def contents(*paths: Path | None) -> str:
    """A text that changes with these files or folders: ComfyUI then loads them anew."""
    return " ".join(fingerprint(path) for path in paths if path is not None)


def _names(folder: str) -> dict[str, str]:
    """{choice: ComfyUI's name of a file that it stands for}."""
    found: dict[str, str] = {}
    shards: dict[PurePosixPath, list[Path]] = {}
    for name in _files(folder):
        path = PurePosixPath(name.replace("\\", "/"))
        if any(part.startswith(".") for part in path.parts):  # such as the ._ files of macOS
            continue
        if SHARD.fullmatch(path.name) is None:
            found[str(path)] = name
        else:
            shards.setdefault(path.parent, []).append(Path(name))
    for parent, names in shards.items():
        sets = {str(parent / name.name): str(name) for name in first_shards(names)}
        if parent != PurePosixPath():
            with suppress(OSError):
                sets = _sets(parent, Path(folder_paths.get_full_path_or_raise(folder, str(names[0]))).parent)
        found |= sets
    return found


def _sets(parent: PurePosixPath, path: Path) -> dict[str, str]:
    """{choice: name of a file} of the checkpoints in shards that lie in one folder. Raises OSError."""
    there = list_weight_files(path)
    sets = sharded(there, set())
    if sets == [path] or len(sets) == len(there.indexes) == 1:
        return {f"{parent}/": str(Path(parent) / there.shards[0].name)}
    return {str(parent / file.name): str(Path(parent) / file.name) for file in sets}


def _files(folder: str) -> list[str]:
    """ComfyUI's names of all files that find_models would look into, whatever endings ComfyUI itself lists: no GGUF."""
    found: set[str] = set()
    for root in folder_paths.get_folder_paths(folder):
        names, _ = folder_paths.recursive_search(root, excluded_dir_names=[".git"])
        found.update(folder_paths.filter_files_extensions(names, READABLE + REFUSED))
    return sorted(found)


def tokenizers() -> list[str]:
    """Where tokenizer.json may come from."""
    return [BESIDE_WEIGHTS, *sorted(_tokenizer_files())]


def resolve_tokenizer(choice: str) -> Path | None:
    """The path of a tokenizer's choice; None: beside the weights. Raises InputError."""
    if choice == BESIDE_WEIGHTS:
        return None
    files = _tokenizer_files()
    if choice not in files:
        raise InputError(f"{choice!r} is not a tokenizer.json in ComfyUI's text_encoders folder. Put T5Gemma's "
                         "tokenizer.json there.")
    return files[choice]


def _tokenizer_files() -> dict[str, Path]:
    roots = [Path(root) for root in folder_paths.get_folder_paths("text_encoders")]
    return {path.relative_to(root).as_posix(): path
            for root in roots if is_folder(root) for path in root.rglob("*tokenizer*.json")
            if is_file(path) and not path.name.startswith(".")}
