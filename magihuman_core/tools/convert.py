"""Any checkpoint of MagiHuman -> one safetensors file: other dtype, other layout, quantized.

Everything here only builds a table of lazy tensors; `write_checkpoint` then pulls piece after piece through it,
so memory stays at a few pieces however large the model is.

Quantized files keep the q, k, v and gate of a layer and the three modalities apart (the split layout), each
linear with its own scale, except that q, k and v share one: joined again, as the network holds them, they
still have one scale. What decides quality stays as it is: gates, norms, embedders, heads.
"""

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ..atomic import check_not_input, check_place
from ..checkpoint.checkpoint import Checkpoint, renamed
from ..checkpoint.header import MAX_HEADER, quoted
from ..checkpoint.json_file import read_json
from ..checkpoint.lazy_tensor import Cast, InMemory, LazyTensor
from ..checkpoint.open import WRAPPED
from ..checkpoint.quantize import to_fp8, to_int8
from ..checkpoint.quantized import COMFY_TABLE
from ..checkpoint.weight_files import is_folder, suffix
from ..checkpoint.write import HASHES, Progress, write_checkpoint
from ..errors import TIP, CheckpointError, InputError
from ..loading.vae import turbo_key
from ..recipes import RECIPES
from ..vae.latent_statistics import MEAN_KEY, STD_KEY
from ..weights.audio_keys import official_keys
from ..weights.comfyui_saved import CONFIG, TOKENIZER, text_tensors
from ..weights.dit_keys import network_config
from ..weights.fused import Part, fused_parts
from ..weights.lora_alpha import METADATA
from ..weights.lora_names import listed, stock_names
from ..weights.open import open_checkpoint
from ..weights.precision import keep_fp32, may_quantize
from ..weights.recognize import recognize
from ..weights.text_encoder_keys import encoder_keys

VERSION = "1"  # of what is written here: names, scales and metadata
FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
QUANTIZED = {"fp8": "float8_e4m3fn", "int8": "int8_tensorwise"}  # ComfyUI's names of the formats
# Metadata that are true of the source alone: how it is stored, and what is written as tensors or under `own` here.
OF_THE_SOURCE = {"format", "types", "total_size", "total_parameters", "quantization_map", "role", COMFY_TABLE, HASHES,
                 WRAPPED, METADATA, TOKENIZER}
MAX_METADATA = MAX_HEADER // 2  # characters, so that the result can be read again

log = logging.getLogger(__name__)


def convert(source: str | Path | Mapping[str, Tensor], target: str | Path, *, dtype: str | None = None,
            layout: str | None = None, role: str | None = None, progress: Progress | None = None) -> Path:
    """Write source, in any layout, as one safetensors file.

    source may be a LoRA as well, with names in any spelling: it comes out under those that ComfyUI's own loader
    finds, without what has no place in MagiHuman's networks, which is logged.
    dtype: "bf16", "fp16", "fp32", "fp8" or "int8"; None keeps that of each tensor (quantized ones become
    bf16). Of a network, embedders, heads and norms are never made narrower; fp8 and int8 are for networks and
    text encoders. layout, of a network: "official" or "split"; None: split where quantized, else official.
    role, of a network: written into the file; None: the one that the source or its name tells.
    Raises InputError for options that do not fit, CheckpointError for files.
    """
    target = Path(target)
    _check_options(target, dtype, layout, role)
    check_place(target, "result")
    pickled = isinstance(source, str | Path) and suffix(Path(source)) == ".ckpt"
    raw = open_checkpoint(source, raw=True, allow_pickle_checkpoint=pickled)
    found = recognize(raw)
    if found.kind == "unknown":
        raise CheckpointError(f"{raw.name}: is {found.what}. Only the parts of MagiHuman can be converted.")
    if found.kind != "network" and (layout or role):
        raise InputError(f"layout and role are for networks, and {raw.name} is {found.what}. Leave them out.")
    if dtype in QUANTIZED and found.kind not in ("network", "text_encoder"):
        raise InputError(f"{dtype} is for networks and text encoders, and {raw.name} is {found.what}. "
                         "Use bf16, fp16 or fp32.")
    check_not_input(target, raw.files)
    if found.kind == "lora":
        entries = _lora(raw)
        if dtype is not None:
            entries = {key: _cast(entry, FLOATS[dtype]) for key, entry in entries.items()}
        return write_checkpoint(target, entries, _metadata(raw, found.kind, None), progress=progress)
    checkpoint = _own_keys(open_checkpoint(raw, found.kind), found.kind)
    if role is None and found.role is not None and checkpoint.metadata.get("role") != found.role:
        log.log(TIP, "%s: is written as %s (%s), as its name says; the file will say so now. --role names another.",
                raw.name, found.role, RECIPES[found.role].description)
    metadata = _metadata(checkpoint, found.kind, role or found.role)
    together: dict[str, str] = {}
    if found.kind == "network" and (layout == "split" or dtype in QUANTIZED):
        table = fused_parts(network_config(checkpoint))
        checkpoint = _split(checkpoint, table)
        together = {part.split_key: part.key for parts in table.values() for part in parts}
    entries = checkpoint.entries
    if dtype in QUANTIZED:
        entries, metadata[COMFY_TABLE] = _quantize(entries, dtype, together)
    elif dtype is not None:
        wanted = FLOATS[dtype]
        entries = {key: entry if keep_fp32(key) and entry.dtype.itemsize >= wanted.itemsize else _cast(entry, wanted)
                   for key, entry in entries.items()}
    if found.kind == "text_encoder":
        inside = text_tensors({TOKENIZER: checkpoint.metadata[TOKENIZER]} if TOKENIZER in checkpoint.metadata else {})
        entries = {**entries, **{key: InMemory(tensor) for key, tensor in inside.items()}}
    return write_checkpoint(target, entries, metadata, progress=progress)


def _check_options(target: Path, dtype: str | None, layout: str | None, role: str | None) -> None:
    for name, value, known in (("dtype", dtype, (*FLOATS, *QUANTIZED)), ("layout", layout, ("official", "split")),
                               ("role", role, RECIPES)):
        if value is not None and value not in known:
            raise InputError(f"{name} is {value!r}, expected one of {', '.join(known)}.")
    if dtype in QUANTIZED and layout == "official":
        raise InputError(f"{dtype} keeps gates and modalities apart, which the official layout does not. "
                         "Use layout split.")
    if suffix(target) != ".safetensors":
        raise InputError(f"{target}: the result is a safetensors file. Give a name that ends in .safetensors.")
    if is_folder(target) or not is_folder(target.parent):
        raise InputError(f"{target}: its folder does not exist, or it is one itself. Give the name of a file.")


def _lora(checkpoint: Checkpoint) -> Mapping[str, LazyTensor]:
    entries, unmatched = stock_names(checkpoint)
    if not entries:
        raise CheckpointError(f"{checkpoint.name}: none of its tensors belongs to a MagiHuman network: "
                              f"{listed(unmatched)}. Choose a LoRA made for one.")
    if unmatched:
        log.warning("%s: %d of its tensors are left out: %s.", checkpoint.name, len(unmatched), listed(unmatched))
    return entries


def _own_keys(checkpoint: Checkpoint, kind: str) -> Checkpoint:
    """The part that loading uses, without the rest of a larger file."""
    if kind == "text_encoder":
        return encoder_keys(checkpoint)
    if kind == "audio_vae":
        return official_keys(checkpoint)
    if kind == "turbo_vae":
        return renamed(checkpoint, lambda key: key if key in (MEAN_KEY, STD_KEY) else turbo_key(key))
    return checkpoint


def _metadata(checkpoint: Checkpoint, kind: str, role: str | None) -> dict[str, str]:
    """What the source says of itself, and where this file comes from."""
    own = {"kind": kind, "source": Path(checkpoint.name).name, "version": VERSION}
    if role is not None:
        own["role"] = role
    path, told = checkpoint.path, checkpoint.metadata
    if kind == "text_encoder" and path is not None and CONFIG not in told:
        config = (path if is_folder(path) else path.parent) / "config.json"
        with suppress(OSError, ValueError):  # where there is none, or one that is not even text
            read_json(config)  # which refuses what is large, or is not JSON
            own[CONFIG] = config.read_text(encoding="utf-8")
    kept, size = {}, 0
    for name, text in sorted(told.items(), key=lambda item: len(item[1])):
        if name in OF_THE_SOURCE or "hash" in name:
            continue
        size += len(json.dumps([name, text]))
        if size <= MAX_METADATA:
            kept[name] = text
        else:
            log.warning("%s: its metadata %s is too long and is left out.", checkpoint.name, quoted(name))
    return kept | own


def _split(checkpoint: Checkpoint, table: Mapping[str, list[Part]]) -> Checkpoint:
    """Official names -> q, k, v, gate and modalities apart. Only the rows of a part are read for it."""
    entries: dict[str, LazyTensor] = {}
    for key, entry in checkpoint.entries.items():
        parts = [part for part in table.get(key, []) if part.split_key]
        if parts and parts[-1].rows.stop != entry.height:
            raise CheckpointError(f"{checkpoint.name}: {key} has {entry.height} rows, expected "
                                  f"{parts[-1].rows.stop}. The file is damaged.")
        entries |= {part.split_key: entry.rows(part.rows.start, part.rows.stop) for part in parts} or {key: entry}
    return checkpoint.with_entries(entries)


def _quantize(entries: Mapping[str, LazyTensor], dtype: str,
              together: Mapping[str, str]) -> tuple[dict[str, LazyTensor], str]:
    """Entries with the large linears quantized, and ComfyUI's table of them.

    together: key -> name of the group whose members share a scale; a key that is not in it has its own.
    """
    result: dict[str, LazyTensor] = {}
    groups: dict[str, list[str]] = {}
    for key, entry in entries.items():
        if len(entry.shape) == 2 and entry.numel and key.endswith(".weight") and may_quantize(key):
            groups.setdefault(together.get(key, key), []).append(key)
        else:
            wide = entry.dtype.itemsize > 2 and not keep_fp32(key)
            result[key] = _cast(entry, torch.bfloat16) if wide else entry
    layers = {}
    for keys in groups.values():
        parts = [entries[key] for key in keys]
        for key, pair in zip(keys, to_fp8(parts) if dtype == "fp8" else map(to_int8, parts), strict=True):
            layer = key.removesuffix(".weight")
            layers[layer] = {"format": QUANTIZED[dtype]}
            result[key], result[layer + ".weight_scale"] = pair
    return result, json.dumps({"format_version": "1.0", "layers": layers})


def _cast(entry: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    """The same numbers in another dtype, where they are not whole ones."""
    return entry if not entry.dtype.is_floating_point or entry.dtype == dtype else Cast(entry, dtype)
