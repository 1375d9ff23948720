"""What a weight file or a model folder is, in plain words: the text of `magihuman inspect`."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

from ..checkpoint.assign import is_finite
from ..checkpoint.checkpoint import Checkpoint, Entry
from ..checkpoint.header import DTYPE_NAMES, file_format, quoted
from ..checkpoint.quantize import stored_dtype
from ..errors import CheckpointError, InputError
from ..model.config import RELEASED
from ..recipes import DISTILLED, RECIPES
from ..weights.dit_keys import may_quantize, network_config, split_official
from ..weights.recognize import KINDS, ROLES, Recognized, recognize
from ..weights.source import INDEX, OTHER_FORMATS, SHARD, open_checkpoint

LOADERS = {
    "network": ("..loading.dit", "load_dit"),
    "text_encoder": ("..loading.text_encoder", "load_text_encoder"),
    "turbo_vae": ("..loading.turbo_vae", "load_turbo_vae"),
    "video_vae": ("..loading.video_vae", "load_video_vae"),
    "audio_vae": ("..loading.audio_vae", "load_audio_vae"),
}
NEEDS = {
    "network": "the text encoder, the audio VAE, and the Turbo VAE or the video VAE; a super-resolution "
               "network also a base or distilled one",
    "text_encoder": "tokenizer.json of T5Gemma beside it",
    "turbo_vae": "nothing; it only decodes: to start from a picture, the video VAE is needed too",
    "video_vae": "nothing; it encodes the picture, and decodes more finely than the Turbo VAE",
    "audio_vae": "nothing",
    "lora": "the network it was made for",
}  # fmt: skip
COMFYUI_FOLDERS = {
    "network": "diffusion_models",
    "text_encoder": "text_encoders",
    "turbo_vae": "vae",
    "video_vae": "vae",
    "audio_vae": "vae",
    "lora": "loras",
}
PLAIN_LAYOUTS = ("official", "encoder only", "bare", "prefixed", "unknown")
READ_SMALL = 4096  # elements: tensors up to this size are read even in a dry run


def describe(path: str | Path, *, read_all: bool = False) -> str:
    """Explain a file, or every file of a folder.

    read_all: also read every tensor and look for values that are not finite (takes as long as loading).
    Raises CheckpointError only where path does not exist: everything else is part of the answer.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder. Check the name.")
    if path.is_dir():
        sections = list(_describe_folder(path, read_all)) or [f"{path}\n  is         an empty folder"]
        return "\n\n".join(sections)
    return _describe_file(path, read_all)


def _describe_folder(folder: Path, read_all: bool, depth: int = 0) -> Iterator[str]:
    """A section for each set of shards, then for each other file, then for each folder inside."""
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        yield f"{folder}\n  problem    cannot be read ({error.strerror or error})"
        return
    files = [child for child in children if not child.is_dir()]
    shards = [file for file in files if SHARD.fullmatch(file.name)]
    indexes = [file for file in files if file.name.endswith(INDEX)]
    for index in indexes:
        yield _describe_checkpoint(index, read_all)
    if shards and not indexes:
        yield _describe_checkpoint(folder, read_all)
    for file in files:
        if file not in shards and file not in indexes:
            yield _describe_file(file, read_all)
    for child in children:
        if child.is_dir() and not child.name.startswith(".") and depth < 3:
            yield from _describe_folder(child, read_all, depth + 1)


def _describe_file(path: Path, read_all: bool) -> str:
    if path.suffix == ".safetensors" or path.suffix in OTHER_FORMATS or path.name.endswith(INDEX):
        return _describe_checkpoint(path, read_all)
    if path.suffix == ".json":
        return f"{path}\n  is         {_describe_json(path)}"
    try:
        found = file_format(path)
    except CheckpointError as error:
        return f"{path}\n  problem    {_without_path(error, path)}"
    if found == "safetensors":
        return _describe_checkpoint(path, read_all)
    return f"{path}\n  is         not a weight file ({size_text(path.stat().st_size)}); nothing here uses it"


def _describe_json(path: Path) -> str:
    """What a JSON file beside the weights is for."""
    try:
        if path.stat().st_size > 100_000_000:
            raise ValueError
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return "damaged: it is no valid JSON. Download it again"
    if not isinstance(content, dict):
        return "a JSON text; nothing here uses it"
    if isinstance(content.get("model"), dict) and "added_tokens" in content:
        vocabulary = content["model"].get("vocab")
        return f"a tokenizer of {len(vocabulary or ()):,} entries, for the text encoder"
    if "decoder_block_out_channels" in content:
        return "the configuration of the Turbo VAE; keep it beside the weights"
    return "a configuration; keep it beside the weights"


def _describe_checkpoint(path: Path, read_all: bool) -> str:
    """The section of one checkpoint: file, shards or index."""
    try:
        checkpoint = open_checkpoint(path, raw=True, allow_pickle_checkpoint=path.suffix == ".ckpt")
    except CheckpointError as error:
        return f"{path}\n  problem    {_without_path(error, path)}"
    found = recognize(checkpoint)
    lines = [("is", found.what + _role(found))]
    lines.append(("holds", _contents(checkpoint)))
    if found.kind == "network" or found.layout not in PLAIN_LAYOUTS:
        lines.append(("layout", ", ".join(filter(None, (found.layout, found.quantization)))))
    elif found.quantization:
        lines.append(("layout", found.quantization))
    if found.kind == "unknown":
        names = ", ".join(quoted(key) for key in list(checkpoint)[:3])
        lines.append(("names", names + (", ..." if len(checkpoint) > 3 else "")))
    else:
        lines.append(("use it", KINDS[found.kind].use))
        lines.append(("needs", NEEDS[found.kind]))
        lines.append(("put it", f"into ComfyUI/models/{COMFYUI_FOLDERS[found.kind]}"))
    lines += [("note", note) for note in _notes(checkpoint, found)]
    problems = list(_problems(checkpoint, found, read_all))
    if found.kind == "lora":
        lines += list(_lora(checkpoint, damaged=bool(problems)))
    if not problems and found.kind in LOADERS:
        lines += [("memory", needed) for needed in _memory(checkpoint, found)]
    lines += [("problem", problem) for problem in problems]
    return "\n".join([str(path), *(f"  {label:<10} {text}" for label, text in lines)])


def _lora(checkpoint: Checkpoint, damaged: bool) -> Iterator[tuple[str, str]]:
    """What a LoRA changes, and, where it is not damaged, whether it fits the released networks."""
    lora = import_module("..runtime.lora", __package__)
    layers, unmatched = lora.by_layer(checkpoint, lora.all_layer_names())
    down = [checkpoint.shape(keys["down"]) for keys in layers.values() if "down" in keys]
    ranks = sorted({shape[0] for shape in down if shape})
    parts = [f"{len(layers)} of MagiHuman's layers"]
    if ranks:
        parts.append(f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}")
    parts += [name for role, name in (("magnitude", "DoRA"), ("diff", "whole differences"))
              if any(role in keys for keys in layers.values())]  # fmt: skip
    yield "changes", ", ".join(parts)
    if layers and not damaged:
        dit = import_module("..model.dit", __package__).MagiHumanDiT(RELEASED, device="meta")
        weights = dict(dit.named_parameters())
        try:
            split = lora.split_lora(checkpoint, RELEASED)
            unmatched = split.unmatched
            for key, deltas in split.deltas.items():
                for delta in deltas:
                    lora.check_delta(delta, key, weights[key], checkpoint.name)
        except CheckpointError as error:
            yield "note", "it is not for the released networks: " + _without_path(error, checkpoint.name)
    if unmatched:
        yield ("note" if layers else "problem"), f"without a place ({len(unmatched)}): {lora.listed(unmatched)}"


def _role(found: Recognized) -> str:
    if found.kind != "network":
        return ""
    return f" ({ROLES[found.role]})" if found.role else " (role not told by its name)"


def _contents(checkpoint: Checkpoint) -> str:
    entries = checkpoint.entries.values()
    parameters = sum(entry.numel for entry in entries)
    sizes = Counter()
    for entry in entries:
        sizes[DTYPE_NAMES.get(entry.dtype, str(entry.dtype))] += entry.nbytes
    dtypes = [f"{name} {size_text(size)}" for name, size in sizes.most_common()] if len(sizes) > 1 else sizes
    total = size_text(sum(sizes.values()))
    return f"{len(checkpoint):,} tensors, {_count(parameters)} values, {total} ({', '.join(dtypes)})"


def _notes(checkpoint: Checkpoint, found: Recognized) -> Iterator[str]:
    """What a user should know although it is no fault."""
    if found.kind == "network":
        if found.role is None:
            yield "base, distilled and super-resolution networks look alike inside: choose the role yourself"
        small = [entry for key, entry in checkpoint.entries.items() if key.endswith("norm.weight")]
        if any(entry.dtype in (torch.bfloat16, torch.float16) for entry in small):
            yield "norms were stored in 16 bits by whoever packed this file; the original has them in 32"
        if found.quantization and "without scales" in found.quantization:
            yield "fp8 without scales loses small weights; a file with scales, or bf16, is better"
    if found.layout == "with decoder":
        yield "the decoder half is not used; only the encoder is read"
    if found.layout == "inside Stable Audio Open":
        yield "only the VAE inside this file is read"


def _problems(checkpoint: Checkpoint, found: Recognized, read_all: bool) -> Iterator[str]:
    """What would go wrong in loading it, found without reading the large tensors."""
    if found.kind in LOADERS:
        try:
            _load_dry(checkpoint, found)
        except CheckpointError as error:
            yield _without_path(error, checkpoint.name)
    if read_all or found.kind == "lora":  # which is small
        yield from _damage(checkpoint)


def _damage(checkpoint: Checkpoint) -> Iterator[str]:
    """What is wrong with the values themselves."""
    for key, entry in checkpoint.entries.items():
        try:
            if not is_finite(entry.load()):
                yield f"{quoted(key)} holds values that are not numbers or are infinite"
        except CheckpointError as error:
            yield _without_path(error, checkpoint.name)


def _load_dry(checkpoint: Checkpoint, found: Recognized):
    """The module that a checkpoint loads to, without content. Raises CheckpointError."""
    module, function = LOADERS[found.kind]
    load = getattr(import_module(module, __package__), function)
    dry = checkpoint.with_entries({key: _dry(entry) for key, entry in checkpoint.entries.items()})
    return load(open_checkpoint(dry, found.kind), device="meta")


def _memory(checkpoint: Checkpoint, found: Recognized) -> Iterator[str]:
    """What it will need on a GPU for a clip of the usual size."""
    memory = import_module("..runtime.memory", __package__)
    config = _load_dry(checkpoint, found).config
    recipe = RECIPES[found.role] if found.role else DISTILLED
    if found.kind == "network":
        config = replace(config, **recipe.overrides(config.layers))
    dtype = torch.float32 if found.kind == "audio_vae" else _kept_dtype(checkpoint, found.kind)
    try:
        yield str(memory.estimate(config, width=recipe.width, height=recipe.height, dtype=dtype,
                                  guided=recipe.guidance is not None))
    except (RuntimeError, CheckpointError, InputError):  # whatever its sizes are, saying what a file is goes on
        return


def _kept_dtype(checkpoint: Checkpoint, kind: str) -> torch.dtype:
    """What a part's large weights are kept in: 8 bits where they are stored so, else bf16."""
    stored = None
    if kind == "network":
        network = open_checkpoint(checkpoint, kind)
        stored = stored_dtype(split_official(network, network_config(network)), may_quantize)
    elif kind == "text_encoder":
        text_encoder = import_module("..text.encoder", __package__)
        stored = stored_dtype(text_encoder.encoder_keys(open_checkpoint(checkpoint, kind)), text_encoder.may_quantize)
    return stored or torch.bfloat16


def _dry(entry: Entry) -> Entry:
    """An entry that gives an empty tensor on the meta device, unless it is small."""
    if entry.numel <= READ_SMALL:
        return entry

    def load(dtype: torch.dtype | None = None, rows: tuple[int, int] | None = None) -> torch.Tensor:
        height = entry.shape[0] if rows is None else rows[1] - rows[0]
        return torch.empty((height, *entry.shape[1:]), dtype=dtype or entry.dtype, device="meta")

    return Entry(entry.shape, entry.dtype, load)


def _without_path(error: CheckpointError, path: object) -> str:
    """The message without the file's name, which stands above it already."""
    text = str(error).removeprefix(f"{path}: ").removeprefix(f"{os.fspath(path)}/")
    return text[:1].lower() + text[1:] if text[:2].istitle() else text


def _count(number: int) -> str:
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return f"{number:,}"


def size_text(size: float) -> str:
    """Bytes in the unit that reads best."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:,} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
