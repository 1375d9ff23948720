"""Quantized weights: every spelling of scales in use, read as ordinary weights.

A quantized weight w of a layer is stored as data (fp8 or int8) and a scale: w = data * scale, with one
scale for the tensor, one per row, or one per equal group of rows (a stacked layer's three modalities).

- quanto: layer.weight._data, layer.weight._scale; layer.input_scale and output_scale are of no use here
- fp8 by several tools: layer.weight, its scale under one of SCALES; perhaps a marker `scaled_fp8`
- ComfyUI: layer.weight, layer.weight_scale, and the format in layer.comfy_quant or in the header
- plain fp8: layer.weight alone

`dequantized` gives a table of ordinary names. Its entries are `Quantized`: loading one decodes it, and
whoever can compute with quantized weights gets data and scale undecoded from `as_quantized`, also after a
change of layout has cut or joined rows.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..nn.quantized_linear import EIGHT_BITS
from .checkpoint import Checkpoint, Entry, Joined, concatenated
from .header import quoted

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
DECODED = torch.bfloat16  # what a decoded weight is where nobody asks for a dtype
PIECE = 1 << 20  # elements decoded at a time: the fp32 in between stays small
SCALES = (".weight.__fp8_scale", ".weight__fp8_scale", ".weight_scale", ".scale_weight", ".weight.scale")
COMPANIONS = (".input_scale", ".scale_input", ".output_scale", ".comfy_quant")
COMFY_TABLE = "_quantization_metadata"
COMFY_FORMATS = {
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "int8_tensorwise": torch.int8,
}
MAX_NOTE = 4096  # bytes of a layer's comfy_quant, which is a short JSON text


@dataclass(frozen=True, slots=True)
class Quantized(Entry):
    """An entry that decodes data * scale. scale: one number, or one per row as [rows]."""

    data: Entry
    scale: Entry

    def rows(self, begin: int, end: int) -> "Quantized":
        scale = self.scale.rows(begin, end) if self.scale.shape else self.scale
        return quantized(self.data.rows(begin, end), scale)


ONE = Entry((), torch.float32, lambda dtype=None, rows=None: torch.ones((), dtype=dtype or torch.float32))


def quantized(data: Entry, scale: Entry) -> Quantized:
    """Join data and scale (shape [], or [rows of data]) into an entry."""

    def load(dtype: torch.dtype | None = None, rows: tuple[int, int] | None = None) -> Tensor:
        values = data.load(None, rows)
        result = torch.empty(values.shape, dtype=dtype or DECODED, device=values.device)
        factor = scale.load(torch.float32, rows if scale.shape else None).to(values.device)
        step = max(1, PIECE // max(1, prod(values.shape[1:])))
        for top in range(0, values.shape[0], step):
            piece = values[top : top + step].to(torch.float32)
            piece *= factor[top : top + step].reshape(-1, *[1] * (piece.dim() - 1)) if scale.shape else factor
            result[top : top + step] = piece
        return result

    return Quantized(data.shape, DECODED, load, data, scale)


def as_quantized(entry: Entry) -> Quantized | None:
    """The entry as data and scale where all of it is stored so, in one dtype; else None."""
    if isinstance(entry, Quantized):
        return entry
    parts = [as_quantized(part) for part in entry.parts] if isinstance(entry, Joined) else [None]
    if any(part is None or part.data.dtype != parts[0].data.dtype for part in parts):
        return None
    scales = [row_scales(part.scale, part.shape[0]) for part in parts]
    return quantized(concatenated([part.data for part in parts]), concatenated(scales))


def row_scales(scale: Entry, height: int) -> Entry:
    """A tensor's one scale, or one for each row in whatever shape, as [rows]."""
    if scale.shape == (height,):
        return scale

    def load(dtype: torch.dtype | None = None, rows: tuple[int, int] | None = None) -> Tensor:
        begin, end = rows or (0, height)
        if scale.numel == 1:
            return scale.load(dtype).reshape(1).expand(end - begin)
        return scale.load(dtype, (begin, end)).reshape(-1)

    return Entry((height,), scale.dtype, load)


def dequantized(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights under ordinary names, decoded when they are loaded.

    Raises CheckpointError for formats that are not known (nvfp4 and other block formats) and for scales that
    fit no row.
    """
    formats = _comfy_formats(checkpoint)
    entries: dict[str, Entry] = {}
    consumed: set[str] = set()
    for key, entry in checkpoint.entries.items():
        if key.endswith(".weight._data"):
            layer, scale_key = key.removesuffix(".weight._data"), key.removesuffix("_data") + "_scale"
            if entry.dtype not in EIGHT_BITS or scale_key not in checkpoint:
                raise _unknown(checkpoint, key, "only 8-bit quanto weights with a scale are read")
        elif key.endswith(".weight") and (entry.dtype in EIGHT_BITS or key[:-7] in formats):
            layer = key.removesuffix(".weight")
            scale_key = next((layer + end for end in SCALES if layer + end in checkpoint), None)
            entry = _comfy_data(checkpoint, layer, entry, formats)
            if scale_key is None and entry.dtype == torch.int8:
                raise _unknown(checkpoint, key, "int8 weights need a scale")
        else:
            continue
        if not entry.shape:
            continue
        scale = ONE if scale_key is None else _row_scale(checkpoint, scale_key, entry.shape[0])
        entries[layer + ".weight"] = quantized(entry, scale)
        consumed.update((key, scale_key), *((layer + end for end in COMPANIONS),))
    if not entries and not formats:
        return checkpoint
    rest = {key: entry for key, entry in checkpoint.entries.items()
            if key not in consumed and not key.endswith(("scaled_fp8", ".comfy_quant"))}  # fmt: skip
    metadata = {key: text for key, text in checkpoint.metadata.items() if key != COMFY_TABLE}
    return Checkpoint(rest | entries, checkpoint.name, metadata, checkpoint.path)


def _row_scale(checkpoint: Checkpoint, key: str, rows: int) -> Entry:
    """A scale as [] or [rows]."""
    entry = checkpoint.entries[key]
    if entry.numel == 1:
        return Entry((), torch.float32, lambda dtype=None, rows=None: entry.load(torch.float32).reshape(()))
    groups = entry.numel
    if entry.shape[:1] != (groups,) or rows % groups:
        raise _unknown(checkpoint, key, f"scales of shape {list(entry.shape)} for {rows} rows are not known")

    def load(dtype: torch.dtype | None = None, part: tuple[int, int] | None = None) -> Tensor:
        scales = entry.load(torch.float32).reshape(-1).repeat_interleave(rows // groups)
        return scales if part is None else scales[part[0] : part[1]]

    return Entry((rows,), torch.float32, load)


def _comfy_formats(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Layer -> format, from ComfyUI's tensors of JSON and from its table in the header."""
    formats: dict[str, str] = {}
    table = checkpoint.metadata.get(COMFY_TABLE)
    if table is not None:
        try:
            formats = {layer: _format(note) for layer, note in json.loads(table)["layers"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise CheckpointError(f"{checkpoint.name}: its table of quantized layers is damaged. "
                                  "Download the file again.") from None
    for key, entry in checkpoint.entries.items():
        if key.endswith(".comfy_quant"):
            try:
                if entry.dtype != torch.uint8 or entry.numel > MAX_NOTE:
                    raise ValueError
                note = json.loads(bytes(entry.load().flatten().tolist()))
                formats[key.removesuffix(".comfy_quant")] = _format(note)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise _unknown(checkpoint, key, "its description is damaged") from None
    return formats


def _format(note: Mapping) -> str:
    options = note | note["params"] if isinstance(note.get("params"), dict) else note
    return "convrot" if options.get("convrot") else str(note["format"])


def _comfy_data(checkpoint: Checkpoint, layer: str, entry: Entry, formats: Mapping[str, str]) -> Entry:
    """The data with its true dtype: ComfyUI's older files keep fp8 as bytes."""
    name = formats.get(layer)
    if name is None:
        return entry
    if name not in COMFY_FORMATS:
        raise _unknown(checkpoint, layer, f"the format {quoted(name)} is not read here, only "
                       f"{', '.join(COMFY_FORMATS)}; ComfyUI's own loader may")  # fmt: skip
    dtype = COMFY_FORMATS[name]
    if entry.dtype == dtype:
        return entry
    if entry.dtype != torch.uint8 or dtype not in FP8:
        raise _unknown(checkpoint, layer, f"it is stored as {str(entry.dtype)[6:]} where {name} is described")
    return Entry(entry.shape, dtype, lambda cast=None, rows=None: entry.load(None, rows).view(dtype))


def _unknown(checkpoint: Checkpoint, key: str, reason: str) -> CheckpointError:
    return CheckpointError(f"{checkpoint.name}: cannot decode the quantized {quoted(key)}: {reason}. "
                           "Use the original file, or one with fp8 scales.")
