"""What a weight file or a model folder is, in plain words: the text of `magihuman inspect`."""

import logging
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.header import DTYPE_NAMES, MAX_HEADER, file_format, file_mode, quoted
from ..checkpoint.json_file import read_json
from ..checkpoint.shards import sharded
from ..checkpoint.weight_files import DEPTH, INDEX, READABLE, REFUSED, UNFINISHED, suffix, walk
from ..errors import CheckpointError, InputError, is_out_of_memory
from ..recipes import RECIPES
from ..sizes import byte_size
from ..weights.comfyui_saved import TEXTS, TOKENIZER
from ..weights.open import open_checkpoint
from ..weights.recognize import KINDS, Recognized, recognize
from .diagnose import damage, describe_lora, estimates, integrity, load_dry, notes, without_path

NEEDS = {
    "network": "the text encoder, the audio VAE, and the Turbo VAE or the video VAE",
    "text_encoder": "tokenizer.json of T5Gemma beside it",
    "turbo_vae": "nothing; it only decodes: to start from a picture, the video VAE is needed too",
    "video_vae": "nothing; it encodes the picture, and decodes more finely than the Turbo VAE",
    "audio_vae": "nothing",
    "lora": "the network it was made for",
}
log = logging.getLogger(__name__)

NO_WEIGHTS = "not a weight file"
COMFYUI_FOLDERS = {"network": "diffusion_models", "text_encoder": "text_encoders", "turbo_vae": "vae",
                   "video_vae": "vae", "audio_vae": "vae", "lora": "loras"}
PLAIN_LAYOUTS = ("official", "encoder only", "bare", "prefixed", "unknown")


def describe(path: str | Path, *, read_all: bool = False, details: bool = False) -> str:
    """Explain a file, or every file of a folder.

    read_all: also read every tensor and look for values that are not finite (takes as long as loading). details: also
    say of what the memory consists, and what is computed.
    Raises CheckpointError only where path does not exist: everything else is part of the answer.
    """
    path = Path(path)
    mode = file_mode(path)
    if not mode:
        raise CheckpointError(f"{path}: there is no such file or folder. Check the name.")
    if stat.S_ISDIR(mode):
        sections = list(_describe_folder(path, read_all, details)) or [f"{path}\n  is         an empty folder"]
        return "\n\n".join(sections)
    return _describe_file(path, read_all, details)


def _describe_folder(folder: Path, read_all: bool, details: bool) -> Iterator[str]:
    """A section for each sharded checkpoint, then for each other file, then for each folder inside."""
    others, named, unsearched = 0, set[Path](), list[Path]()
    for found in walk(folder, DEPTH):
        if isinstance(found, OSError):
            yield f"{found.filename}\n  problem    cannot be read ({found.strerror or found})"
            continue
        unsearched += found.unsearched
        for path in sharded(found, named):
            yield _describe_checkpoint(path, read_all, details)
        for file in found.files:
            if file in found.shards or file in found.indexes:
                continue
            section = _describe_file(file, read_all, details)
            if NO_WEIGHTS in section:
                others += 1
            else:
                yield section
    if others:
        yield f"{folder}\n  others     {others} files that are not weights; nothing here uses them"
    if unsearched:
        yield (f"{folder}\n  deeper     {len(unsearched)} folders that lie more than {DEPTH} below it are not looked "
               f"into, the first is {unsearched[0]}")


def _describe_file(path: Path, read_all: bool, details: bool) -> str:
    if suffix(path) in READABLE + REFUSED + UNFINISHED or path.name.lower().endswith(INDEX):
        return _describe_checkpoint(path, read_all, details)
    if suffix(path) == ".json":
        return f"{path}\n  is         {_describe_json(path)}"
    try:
        found = file_format(path)
    except CheckpointError as error:
        return f"{path}\n  problem    {without_path(error, path)}"
    if found == "safetensors":
        return _describe_checkpoint(path, read_all, details)
    return f"{path}\n  is         {NO_WEIGHTS} ({byte_size(path.stat().st_size)}); nothing here uses it"


def _describe_json(path: Path) -> str:
    """What a JSON file beside the weights is for."""
    with suppress(OSError):
        if path.stat().st_size > MAX_HEADER:  # T5Gemma's tokenizer has 34 MB
            with path.open("rb") as file:
                known = b'"added_tokens"' in file.read(1 << 16)
            return "a tokenizer, for the text encoder" if known else "a large JSON text; nothing here uses it"
    try:
        content = read_json(path, MAX_HEADER)
    except (OSError, ValueError):
        return "damaged: it is not valid JSON. Download it again"
    if not isinstance(content, dict):
        return "a JSON text; nothing here uses it"
    if isinstance(content.get("model"), dict) and "added_tokens" in content:
        vocabulary = content["model"].get("vocab")
        return f"a tokenizer of {len(vocabulary or ()):,} entries, for the text encoder"
    if "decoder_block_out_channels" in content:
        return "the configuration of the Turbo VAE; keep it beside the weights"
    return "a configuration; keep it beside the weights"


def _describe_checkpoint(path: Path, read_all: bool, details: bool) -> str:
    """The section of one checkpoint: file, shards or index. One that cannot be examined does not spoil a folder."""
    try:
        return _examined(path, read_all, details)
    except (CheckpointError, InputError) as error:  # the second of a tokenizer beside it
        return f"{path}\n  problem    {without_path(error, path)}"
    except Exception as error:  # a fault of ours
        if is_out_of_memory(error):
            raise
        log.debug("", exc_info=True)
        return f"{path}\n  problem    cannot be examined (internal error: {type(error).__name__}: {error})"


def _examined(path: Path, read_all: bool, details: bool) -> str:
    checkpoint = open_checkpoint(path, raw=True, allow_pickle_checkpoint=suffix(path) == ".ckpt")
    found = recognize(checkpoint)
    lines = [("is", found.what + _role(found)), ("holds", _contents(checkpoint))]
    if found.kind == "network" or found.layout not in PLAIN_LAYOUTS:
        lines.append(("layout", ", ".join(filter(None, (found.layout, found.quantization)))))
    elif found.quantization:
        lines.append(("layout", found.quantization))
    if found.kind == "unknown":
        names = ", ".join(quoted(key) for key in list(checkpoint)[:3])
        lines.append(("names", names + (", ..." if len(checkpoint) > 3 else "")))
    else:
        lines += [("use it", KINDS[found.kind].use), ("needs", _needs(checkpoint, found)),
                  ("put it", f"into ComfyUI/models/{COMFYUI_FOLDERS[found.kind]}")]
    lines += [("note", note) for note in notes(checkpoint, found)]
    module, problems = None, list[str]()
    try:
        module = load_dry(checkpoint, found)
    except CheckpointError as error:
        problems.append(without_path(error, checkpoint.name))
    if read_all or found.kind == "lora":  # which is small
        problems += damage(checkpoint, found)
    if found.kind == "lora":
        lines += describe_lora(checkpoint, damaged=bool(problems))
    if read_all and not problems:
        lines.append(("compared", integrity(checkpoint)))
    if module is not None and not problems:
        lines += estimates(checkpoint, found, module.config, details)
    lines += [("problem", problem) for problem in problems]
    return "\n".join([str(path), *(f"  {label:<10} {text}" for label, text in lines)])


def _needs(checkpoint: Checkpoint, found: Recognized) -> str:
    if found.kind == "text_encoder" and any(TEXTS.get(key.rpartition(".")[2]) == TOKENIZER for key in checkpoint):
        return "nothing; its tokenizer is inside"
    enlarges = found.role is not None and RECIPES[found.role].super_resolution
    return NEEDS[found.kind] + ("; before it a base or distilled network makes the clip" if enlarges else "")


def _role(found: Recognized) -> str:
    if found.kind != "network":
        return ""
    return f" ({RECIPES[found.role].description})" if found.role else " (role not told by its name)"


def _contents(checkpoint: Checkpoint) -> str:
    entries = checkpoint.entries.values()
    parameters = sum(entry.numel for entry in entries)
    sizes: Counter[str] = Counter()
    for entry in entries:
        sizes[DTYPE_NAMES.get(entry.dtype, str(entry.dtype))] += entry.nbytes
    dtypes = [f"{name} {byte_size(size)}" for name, size in sizes.most_common()] if len(sizes) > 1 else sizes
    total = byte_size(sum(sizes.values()))
    return f"{len(checkpoint):,} tensors, {_count(parameters)} values, {total} ({', '.join(dtypes)})"


def _count(number: int) -> str:
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return f"{number:,}"
