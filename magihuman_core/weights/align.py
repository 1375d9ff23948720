"""Widths that fp8 matrix units can work with.

They want both sides of a matrix in multiples of 16, and SwiGLU7's inner width of 13652 is not one. Zeros make it one:
a pair of zero rows in up_gate_proj gives silu(0) * (0 + 1) = 0, and meets a zero column in down_proj.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.lazy_tensor import InMemory, LazyTensor, concatenated
from ..checkpoint.quantized import Quantized, as_quantized
from ..model.config import DiTConfig

MULTIPLE = 16


def aligned(tensors: Checkpoint, config: DiTConfig) -> tuple[Checkpoint, DiTConfig]:
    """Weights under our keys, and their configuration, with the MLPs widened to multiples of 16 by zeros."""
    wider = replace(config, gelu_width=_rounded(config.gelu_width), swiglu_width=_rounded(config.swiglu_width))
    entries = dict(tensors.entries)
    for key, entry in entries.items():
        if key.startswith("blocks.") and ".mlp." in key and not key.endswith("norm.weight"):
            gelu = int(key.split(".")[1]) in config.gelu_layers
            width = wider.gelu_width if gelu else wider.swiglu_width
            if key.endswith("down_proj.weight"):
                entries[key] = _wider(entry, width)
            else:
                entries[key] = _higher(entry, width if gelu else 2 * width)
    return tensors.with_entries(entries), wider


def _rounded(width: int) -> int:
    return -(-width // MULTIPLE) * MULTIPLE


def _higher(entry: LazyTensor, height: int) -> LazyTensor:
    """With rows of zeros below."""
    missing = height - entry.shape[0]
    if not missing:
        return entry
    stored = as_quantized(entry)
    if stored is None:
        return concatenated([entry, _zero_rows(missing, entry.shape[1], entry.dtype)])
    scale = stored.scale
    if scale.shape:  # one for each row; if all are alike they stay so, which some formats need
        scale = concatenated([scale, *[scale.rows(scale.shape[0] - 1, scale.shape[0])] * missing])
    return Quantized(concatenated([stored.data, _zero_rows(missing, entry.shape[1], stored.data.dtype)]), scale)


def _wider(entry: LazyTensor, width: int) -> LazyTensor:
    """With columns of zeros to the right."""
    if entry.shape[1] == width:
        return entry
    stored = as_quantized(entry)
    if stored is not None:
        return Quantized(_wider(stored.data, width), stored.scale)
    return WithZeroColumns(entry, width)


class WithZeroColumns(LazyTensor):
    """A matrix with columns of zeros to its right."""

    def __init__(self, source: LazyTensor, width: int) -> None:
        super().__init__((source.height, width), source.dtype)
        self.source = source

    def _read(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        values = self.source.read(dtype, (begin, end))
        missing = (0, self.shape[1] - self.source.shape[1])
        if values.dtype.itemsize > 1:
            return F.pad(values, missing)
        return F.pad(values.view(torch.uint8), missing).view(values.dtype)  # a zero is 0 there too


def _zero_rows(height: int, width: int, dtype: torch.dtype) -> LazyTensor:
    return InMemory(torch.zeros((1, 1), dtype=dtype).expand(height, width))
