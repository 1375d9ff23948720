"""Quantized weights: every spelling of scales in use, read as ordinary weights.

A quantized weight w of a layer is stored as data (fp8 or int8) and a scale: w = data * scale, with one
scale for the tensor, one per row, or one per equal group of rows (a stacked layer's three modalities).

- quanto: layer.weight._data, layer.weight._scale; layer.input_scale and output_scale are of no use here
- fp8 by several tools: layer.weight, its scale under one of SCALES; perhaps a marker `scaled_fp8`
- ComfyUI: layer.weight, layer.weight_scale, and the format in layer.comfy_quant or in the header
- plain fp8: layer.weight alone

`dequantized` gives a table of ordinary names. Its entries are `Quantized`: reading one decodes it, and
whoever can compute with quantized weights gets data and scale undecoded from `as_quantized`, also after a
change of layout has cut or joined rows.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..nn.quantized_linear import EIGHT_BITS
from .checkpoint import Checkpoint
from .header import quoted
from .lazy_tensor import Cast, Concatenated, InMemory, LazyTensor, Reshaped, concatenated, row_ranges

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
DECODED = torch.bfloat16  # what a decoded weight is where nobody asks for a dtype
SCALES = (".weight.__fp8_scale", ".weight__fp8_scale", ".weight_scale", ".scale_weight", ".weight.scale")
NOTE = ".comfy_quant"
COMPANIONS = (".input_scale", ".scale_input", ".output_scale", NOTE)
COMFY_TABLE = "_quantization_metadata"
COMFY_FORMATS = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2, "int8_tensorwise": torch.int8}
MAX_NOTE = 4096  # bytes of a layer's comfy_quant, which is a short JSON text
MAX_PREFIX = 4  # parts of a name, such as "model.diffusion_model.", that keys have and ComfyUI's table has not


class Quantized(LazyTensor):
    """A tensor stored as data and scale, read as data * scale. scale: one number, or one per row as [rows]."""

    def __init__(self, data: LazyTensor, scale: LazyTensor) -> None:
        super().__init__(data.shape, DECODED)
        self.data, self.scale = data, scale

    def _read(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        values = self.data.read(rows=(begin, end))
        result = torch.empty(values.shape, dtype=dtype, device=values.device)
        scale = self.scale.read(torch.float32, (begin, end) if self.scale.shape else None).to(values.device)
        for top, bottom in row_ranges(end - begin, self.width):
            piece = values[top:bottom].to(torch.float32)
            piece *= scale[top:bottom].reshape(-1, *[1] * (piece.dim() - 1)) if scale.dim() else scale
            result[top:bottom] = piece
        return result

    def _rows(self, begin: int, end: int) -> "Quantized":
        return Quantized(self.data.rows(begin, end), self.scale.rows(begin, end) if self.scale.shape else self.scale)


class RowScales(LazyTensor):
    """Scales as one for each row, of a tensor that has one for each of its equal groups of rows (in whatever shape)."""

    def __init__(self, scale: LazyTensor, height: int) -> None:
        super().__init__((height,), scale.dtype)
        self.scale, self.group = scale, height // scale.numel

    def _read(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        if self.scale.numel == 1:
            return self.scale.read(dtype).reshape(1).expand(end - begin)
        first, last = begin // self.group, -(-end // self.group)
        scales = self.scale.read(dtype, (first, last)).reshape(-1).repeat_interleave(self.group)
        return scales[begin - first * self.group : end - first * self.group]


class Reinterpreted(LazyTensor):
    """Bytes that are numbers of another dtype of the same size."""

    def __init__(self, source: LazyTensor, dtype: torch.dtype) -> None:
        super().__init__(source.shape, dtype)
        self.source = source

    def _read(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        return self.source.read(rows=(begin, end)).view(self.dtype)


def as_quantized(entry: LazyTensor) -> Quantized | None:
    """The tensor as data and scale where all of it is stored so, in one dtype; else None."""
    if isinstance(entry, Quantized):
        return entry
    if not isinstance(entry, Concatenated):
        return None
    parts = [part for part in map(as_quantized, entry.parts) if part is not None]
    if len(parts) < len(entry.parts) or len({part.data.dtype for part in parts}) > 1:
        return None
    scales = [row_scales(part.scale, part.height) for part in parts]
    return Quantized(concatenated([part.data for part in parts]), concatenated(scales))


def row_scales(scale: LazyTensor, height: int) -> LazyTensor:
    """A tensor's one scale, or one for each row in whatever shape, as [rows]."""
    return scale if scale.shape == (height,) else RowScales(scale, height)


def with_notes(checkpoint: Checkpoint) -> Checkpoint:
    """The same with ComfyUI's table from the header as a note beside each layer, which goes wherever its layer goes.

    A table has names with the prefix of a whole checkpoint or without, and so have the keys. Raises CheckpointError for
    a table that is damaged, or that names other layers than those which are quantized: their format is not known then.
    """
    if COMFY_TABLE not in checkpoint.metadata:
        return checkpoint
    entries = dict(checkpoint.entries)
    layers = {key.removesuffix(".weight") for key in entries if key.endswith(".weight")}
    without_prefix: dict[str, list[str]] = {}
    for layer in layers:
        for ending in _endings(layer):
            without_prefix.setdefault(ending, []).append(layer)
    strange = []
    for name, note in table_of_layers(checkpoint.metadata[COMFY_TABLE], checkpoint.name).items():
        found = [full for full in (name, *_endings(name)) if full in layers][:1] or without_prefix.get(name, [])
        text = torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)
        for layer in found:
            entries.setdefault(layer + NOTE, InMemory(text))
        strange += [] if found else [name]
    unknown = next((key for key, entry in checkpoint.entries.items() if key.endswith(".weight")
                    and entry.dtype in EIGHT_BITS and key.removesuffix(".weight") + NOTE not in entries
                    and _scale_key(checkpoint, key.removesuffix(".weight"))), None)
    if strange and unknown is not None:
        raise _unknown(checkpoint, unknown, f"the table of quantized layers does not name it, but "
                       f"{quoted(strange[0])}, which is not there")
    metadata = {key: text for key, text in checkpoint.metadata.items() if key != COMFY_TABLE}
    return replace(checkpoint, entries=entries, metadata=metadata)


def _endings(name: str) -> list[str]:
    """A name without its first part, without the first two, and so on."""
    return [name.split(".", cut)[-1] for cut in range(1, min(name.count("."), MAX_PREFIX) + 1)]


def table_of_layers(text: str, name: str) -> dict[str, Any]:
    """Layer -> what ComfyUI's table (its text) says of it; name: of the file, for CheckpointError."""
    try:
        layers = json.loads(text)["layers"]
        if not isinstance(layers, dict):
            raise ValueError
        return layers
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CheckpointError(f"{name}: its table of quantized layers is damaged. Download the file again.") from None


def joined_tables(texts: Sequence[str], name: str) -> str:
    """One table of several files' tables; what is said first of a layer holds."""
    layers: dict[str, Any] = {}
    for text in reversed(texts):
        layers |= table_of_layers(text, name)
    return json.dumps({"format_version": "1.0", "layers": layers})


def dequantized(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights under ordinary names, decoded when they are read.

    Raises CheckpointError for formats that are not known (nvfp4 and other block formats) and for scales that
    fit no row.
    """
    checkpoint = with_notes(checkpoint)
    formats = _comfy_formats(checkpoint)
    entries: dict[str, LazyTensor] = {}
    consumed: set[str | None] = set()
    for key, entry in checkpoint.entries.items():
        scale_key: str | None
        if key.endswith(".weight._data"):
            layer, scale_key = key.removesuffix(".weight._data"), key.removesuffix("_data") + "_scale"
            if entry.dtype not in EIGHT_BITS or scale_key not in checkpoint:
                raise _unknown(checkpoint, key, "only 8-bit quanto weights with a scale are read")
        elif key.endswith(".weight") and (entry.dtype in EIGHT_BITS or key[:-7] in formats):
            layer = key.removesuffix(".weight")
            scale_key = _scale_key(checkpoint, layer)
            entry = _comfy_data(checkpoint, layer, entry, formats)
            if scale_key is None and entry.dtype == torch.int8:
                raise _unknown(checkpoint, key, "int8 weights need a scale")
        else:
            continue
        if not entry.shape:
            continue
        scale = InMemory(torch.ones(())) if scale_key is None else _row_scale(checkpoint, scale_key, entry.shape[0])
        entries[layer + ".weight"] = Quantized(entry, scale)
        consumed.update((key, scale_key), *((layer + end for end in COMPANIONS),))
    if not entries and not formats:
        return checkpoint
    rest = {key: entry for key, entry in checkpoint.entries.items()
            if key not in consumed and not key.endswith(("scaled_fp8", NOTE))}
    return checkpoint.with_entries(rest | entries)


def _scale_key(checkpoint: Checkpoint, layer: str) -> str | None:
    return next((layer + end for end in SCALES if layer + end in checkpoint), None)


def _row_scale(checkpoint: Checkpoint, key: str, height: int) -> LazyTensor:
    """A scale as [] or [rows], fp32."""
    scale = Cast(checkpoint.entries[key], torch.float32)
    if scale.numel == 1:
        return Reshaped(scale, ())
    if not scale.numel or scale.shape[:1] != (scale.numel,) or height % scale.numel:
        raise _unknown(checkpoint, key, f"scales of shape {list(scale.shape)} for {height} rows are not known")
    return row_scales(scale, height)


def _comfy_formats(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Layer -> format, from ComfyUI's tensors of JSON."""
    formats: dict[str, str] = {}
    for key, entry in checkpoint.entries.items():
        if key.endswith(NOTE):
            try:
                if entry.dtype != torch.uint8 or entry.numel > MAX_NOTE:
                    raise ValueError
                note = json.loads(bytes(entry.read().flatten().tolist()))
                formats[key.removesuffix(NOTE)] = _format(note)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise _unknown(checkpoint, key, "its description is damaged") from None
    return formats


def _format(note: Mapping) -> str:
    options = note | note["params"] if isinstance(note.get("params"), dict) else note
    return "convrot" if options.get("convrot") else str(note["format"])


def _comfy_data(checkpoint: Checkpoint, layer: str, entry: LazyTensor, formats: Mapping[str, str]) -> LazyTensor:
    """The data with its true dtype: ComfyUI's older files keep fp8 as bytes."""
    name = formats.get(layer)
    if name is None:
        return entry
    if name not in COMFY_FORMATS:
        raise _unknown(checkpoint, layer, f"the format {quoted(name)} is not read here, only "
                       f"{', '.join(COMFY_FORMATS)}; ComfyUI's own loader may")
    dtype = COMFY_FORMATS[name]
    if entry.dtype == dtype:
        return entry
    if entry.dtype != torch.uint8 or dtype not in FP8:
        raise _unknown(checkpoint, layer, f"it is stored as {str(entry.dtype)[6:]} where {name} is described")
    return Reinterpreted(entry, dtype)


def _unknown(checkpoint: Checkpoint, key: str, reason: str) -> CheckpointError:
    return CheckpointError(f"{checkpoint.name}: cannot decode the quantized {quoted(key)}: {reason}. "
                           "Use the original file, or one with fp8 scales.")
