"""Rounding weights to 8 bits, as entries that are computed a few rows at a time when somebody reads them.

fp8 (e4m3 or e5m2) has one scale for a tensor, or for several that belong together; int8 has one for each row.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from .checkpoint import Checkpoint, Entry
from .quantized import EIGHT_BITS, as_quantized, row_scales
from .write import row_ranges

INT8_MAX = 127


def to_fp8(entries: Sequence[Entry], dtype: torch.dtype = torch.float8_e4m3fn) -> list[tuple[Entry, Entry]]:
    """(data, scale []) of tensors that share one scale, which brings the largest value to the largest of fp8."""
    largest = torch.finfo(dtype).max

    @cache
    def scale() -> float:  # found when it is first needed
        peaks = [entry.load(torch.float32, rows).abs().max() for entry in entries for rows in row_ranges(entry)]
        return float(torch.stack(peaks).max()) / largest or 1.0  # NaN stays NaN, and is then reported

    # The division may round past the largest value, which e4m3 has no infinity for.
    data = [_computed(entry, dtype, lambda values: (values / scale()).clamp(-largest, largest)) for entry in entries]
    factor = Entry((), torch.float32, lambda cast=None, rows=None: torch.tensor(scale()))
    return [(entry, factor) for entry in data]


def to_int8(entry: Entry) -> tuple[Entry, Entry]:
    """(data, scales [rows, 1]) of a tensor."""

    def scales(values: Tensor) -> Tensor:
        found = values.abs().amax(1, keepdim=True) / INT8_MAX
        return torch.where(found == 0, 1.0, found)

    return (_computed(entry, torch.int8, lambda values: (values / scales(values)).round()),
            _computed(entry, torch.float32, scales, width=1))  # fmt: skip


def _computed(entry: Entry, dtype: torch.dtype, function: Callable[[Tensor], Tensor], width: int = 0) -> Entry:
    """function of a matrix's rows, of a few at a time, in this dtype. width: of the result, 0: the same."""

    def load(cast: torch.dtype | None = None, rows: tuple[int, int] | None = None) -> Tensor:
        part, result = entry if rows is None else entry.rows(*rows), None
        for begin, end in row_ranges(part):
            piece = function(part.load(torch.float32, (begin, end)))
            if result is None:
                result = piece.new_empty((part.shape[0], piece.shape[1]), dtype=cast or dtype)
            result[begin:end] = piece.to(dtype)
        return result

    return Entry((entry.shape[0], width or entry.shape[1]), dtype, load)


def quantized_layers(tensors: Checkpoint, dtype: torch.dtype | None, chosen: Callable[[str], bool]) -> Checkpoint:
    """The weights that QuantizedLinear wants: of each chosen `layer.weight` its data and `layer.scale` [rows].

    What is stored so already is taken as it is, everything else rounded. The same table where dtype is not of 8 bits.
    """
    if dtype not in EIGHT_BITS:
        return tensors
    entries: dict[str, Entry] = {}
    for key, entry in tensors.entries.items():
        if not chosen(key):
            entries[key] = entry
            continue
        stored = as_quantized(entry)
        if stored is not None and stored.data.dtype == dtype:
            data, scale = stored.data, stored.scale
        else:
            data, scale = to_int8(entry) if dtype == torch.int8 else to_fp8([entry], dtype)[0]
        entries[key] = data
        entries[key.removesuffix("weight") + "scale"] = row_scales(scale, entry.shape[0])
    return tensors.with_entries(entries)


def stored_dtype(tensors: Checkpoint, chosen: Callable[[str], bool]) -> torch.dtype | None:
    """The 8-bit dtype that all chosen weights are stored in; None where they are not."""
    found = set()
    for key, entry in tensors.entries.items():
        if chosen(key):
            stored = as_quantized(entry)
            found.add(None if stored is None else stored.data.dtype)
    return found.pop() if len(found) == 1 else None
