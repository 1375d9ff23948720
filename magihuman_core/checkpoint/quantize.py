"""Rounding weights to 8 bits, as tensors that are computed a few rows at a time when somebody reads them.

fp8 (e4m3 or e5m2) has one scale for a tensor, or for several that belong together; int8 has one for each row.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .lazy_tensor import LazyTensor, row_ranges
from .quantized import EIGHT_BITS, as_quantized, row_scales

INT8_MAX = 127


def to_fp8(entries: Sequence[LazyTensor],
           dtype: torch.dtype = torch.float8_e4m3fn) -> list[tuple[LazyTensor, LazyTensor]]:
    """(data, scale []) of tensors that share one scale, which brings the largest value to the largest of fp8."""
    largest = torch.finfo(dtype).max
    scale = SharedScale(entries, largest)
    # The division may round past the largest value, which e4m3 has no infinity for.
    data = [ComputedRows(entry, dtype, lambda values: (values / scale.value).clamp(-largest, largest))
            for entry in entries]
    return [(entry, scale) for entry in data]


def to_int8(entry: LazyTensor) -> tuple[LazyTensor, LazyTensor]:
    """(data, scales [rows, 1]) of a tensor."""

    def scales(values: Tensor) -> Tensor:
        found = values.abs().amax(1, keepdim=True) / INT8_MAX
        return torch.where(found == 0, 1.0, found)

    return (ComputedRows(entry, torch.int8, lambda values: (values / scales(values)).round()),
            ComputedRows(entry, torch.float32, scales, width=1))


class SharedScale(LazyTensor):
    """The largest magnitude in all these tensors over `largest`, fp32 []."""

    def __init__(self, entries: Sequence[LazyTensor], largest: float) -> None:
        super().__init__((), torch.float32)
        self.entries, self.largest = entries, largest

    @cached_property
    def value(self) -> float:
        """Found when it is first needed."""
        peaks = [entry.read(torch.float32, rows).abs().max()
                 for entry in self.entries for rows in row_ranges(entry.height, entry.width)]
        return float(torch.stack(peaks).max()) / self.largest or 1.0  # NaN stays NaN, and is then reported

    def _read(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        return torch.tensor(self.value)


class ComputedRows(LazyTensor):
    """function of a matrix's rows, of a few at a time, in this dtype. width: of the result, 0: the same."""

    def __init__(self, source: LazyTensor, dtype: torch.dtype, function: Callable[[Tensor], Tensor],
                 width: int = 0) -> None:
        super().__init__((source.height, width or source.shape[1]), dtype)
        self.source, self.function = source, function

    def _read(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        part = self.source.rows(begin, end)
        result = None
        for top, bottom in row_ranges(part.height, part.width):
            piece = self.function(part.read(torch.float32, (top, bottom)))
            if result is None:
                result = piece.new_empty((end - begin, self.shape[1]), dtype=dtype)
            result[top:bottom] = piece.to(self.dtype)
        return torch.empty((0, self.shape[1]), dtype=dtype) if result is None else result


def quantized_layers(tensors: Checkpoint, dtype: torch.dtype | None, chosen: Callable[[str], bool]) -> Checkpoint:
    """The weights that QuantizedLinear wants: of each chosen `layer.weight` its data and `layer.scale` [rows].

    What is stored so already is taken as it is, and what `kept_wide` names; everything else is rounded. The same table
    where dtype is not of 8 bits.
    """
    if dtype not in EIGHT_BITS:
        return tensors
    wide = kept_wide(tensors, dtype, chosen)
    entries: dict[str, LazyTensor] = {}
    for key, entry in tensors.entries.items():
        if not chosen(key) or key in wide:
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
    """The 8-bit dtype of the chosen weights where most of them are stored in 8 bits, by their values; else None."""
    values: Counter[torch.dtype | None] = Counter()
    for key, entry in tensors.entries.items():
        if chosen(key):
            stored = as_quantized(entry)
            values[None if stored is None else stored.data.dtype] += entry.numel
    wide = values.pop(None, 0)
    return values.most_common(1)[0][0] if values.total() > wide else None


def kept_wide(tensors: Checkpoint, dtype: torch.dtype | None, chosen: Callable[[str], bool]) -> frozenset[str]:
    """Keys of the chosen weights that stay in 16 bits although the others are wanted in dtype, of 8 bits.

    Those of a file most of which is in 8 bits: whoever packed it left them so, since they bear rounding less. Of any
    other file all chosen weights are rounded.
    """
    if dtype not in EIGHT_BITS or stored_dtype(tensors, chosen) is None:
        return frozenset()
    return frozenset(key for key, entry in tensors.entries.items() if chosen(key) and as_quantized(entry) is None)
