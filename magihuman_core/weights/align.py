"""Widths that fp8 matrix units can work with.

They want both sides of a matrix in multiples of 16, and SwiGLU7's inner width of 13652 is none. Zeros make it one:
a pair of zero rows in up_gate_proj gives silu(0) * (0 + 1) = 0, and meets a zero column in down_proj.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint, Entry, concatenated
from ..checkpoint.quantized import as_quantized, quantized
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


def _higher(entry: Entry, height: int) -> Entry:
    """With rows of zeros below."""
    missing = height - entry.shape[0]
    if not missing:
        return entry
    stored = as_quantized(entry)
    if stored is None:
        return concatenated([entry, _zeros((missing, entry.shape[1]), entry.dtype)])
    scale = stored.scale
    if scale.shape:  # one for each row; if all are alike they stay so, which some formats need
        scale = concatenated([scale, *[scale.rows(scale.shape[0] - 1, scale.shape[0])] * missing])
    return quantized(concatenated([stored.data, _zeros((missing, entry.shape[1]), stored.data.dtype)]), scale)


def _wider(entry: Entry, width: int) -> Entry:
    """With columns of zeros to the right."""
    if entry.shape[1] == width:
        return entry
    stored = as_quantized(entry)
    if stored is not None:
        return quantized(_wider(stored.data, width), stored.scale)

    def load(dtype: torch.dtype | None = None, rows: tuple[int, int] | None = None) -> Tensor:
        values = entry.load(dtype, rows)
        if values.dtype.itemsize > 1:
            return F.pad(values, (0, width - entry.shape[1]))
        return F.pad(values.view(torch.uint8), (0, width - entry.shape[1])).view(values.dtype)  # a zero is 0 there too

    return Entry((entry.shape[0], width), entry.dtype, load)


def _zeros(shape: tuple[int, int], stored: torch.dtype) -> Entry:
    def load(dtype: torch.dtype | None = None, rows: tuple[int, int] | None = None) -> Tensor:
        height = shape[0] if rows is None else rows[1] - rows[0]
        return torch.zeros(height, shape[1], dtype=dtype or stored)

    return Entry(shape, stored, load)
