"""Whether a folder is ready for a wished clip, in lines: what is there, what is missing, what fits, and what to set."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..checkpoint.weight_files import INDEX, is_file, is_folder, shard_set
from ..sizes import byte_size
from ..weights.comfyui_saved import TOKENIZER
from ..weights.open import open_checkpoint
from ..weights.text_encoder_keys import encoder_keys
from .fits import fit, in_words, settings, target_of
from .folder import ModelFolder, find_models
from .wishes import Need, Wish, look, missing_in_words


def check(wish: Wish, folder: str | Path | None, memory: float | None = None) -> tuple[list[str], bool]:
    """(lines, whether all parts are there and it will run). folder: None: nothing is there yet; memory: GB of the card.

    Raises InputError where folder is none.
    """
    models = None if folder is None else find_models(folder)
    return check_models(wish, models, memory)


def check_models(wish: Wish, models: ModelFolder | None, memory: float | None = None) -> tuple[list[str], bool]:
    """As check, for a folder that was searched already."""
    needs = look(models, wish.parts)
    target = target_of(memory)
    looked = "no folder; all is taken as missing" if models is None else models.path
    lines = [f"For: {wish}", f"Looked in: {looked}", ""]
    lines += _there(needs)
    missing = list(missing_in_words(needs))
    if models is not None and (without := _without_tokenizer(models)):
        missing.append(f"Missing: tokenizer.json in {without}. It is on the page of the text encoder.")
    if missing and models is not None and models.unsearched:
        missing.append(models.not_searched.strip())
    lines += [*missing, ""] if missing else []
    runs = True
    if target is None:
        lines.append("There is no card here that PyTorch can use. On the command line, "
                     "--memory 16 plans for one of 16 GB.")
    else:
        found = fit(wish, target)
        runs = found.runs
        lines += in_words(found)
    return [*lines, "", *settings(wish, target)], not missing and runs


def _without_tokenizer(models: ModelFolder) -> Path | None:
    """The folder of a text encoder that has no tokenizer beside it, nor inside its file."""
    for path in models.found.get("text_encoder", ()):
        folder = path if is_folder(path) else path.parent
        if encoder_keys(open_checkpoint(path, "text_encoder")).metadata.get(TOKENIZER):
            return None
        places = (models.path, folder, folder / "tokenizer", folder.parent / "tokenizer")
        if any(is_file(place / "tokenizer.json") for place in places):
            return None
    return folder if "text_encoder" in models.found else None


def _there(needs: Iterable[Need]) -> Iterator[str]:
    present = [need for need in needs if need.found]
    if not present:
        return
    yield "There:"
    for need in present:
        yield f"  {need.name}: " + " and ".join(f"{path} ({byte_size(_size(path))})" for path in need.found)
        if len(need.found) > 1:
            yield "    more than one: choose the one you want in the loader, or with --part"
    yield ""


def _size(path: Path) -> int:
    """Bytes of a file, or of a checkpoint's shards."""
    whole = is_file(path) and not path.name.endswith(INDEX) and not shard_set(path)
    files = [path] if whole else open_checkpoint(path, raw=True).files
    return sum(file.stat().st_size for file in files)
