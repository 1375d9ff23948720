"""The network's tensors from official keys to ours and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.lazy_tensor import LazyTensor
from ..model.config import DiTConfig
from .fused import fused_parts, our_rows
from .recognize import explain_shape_errors

if TYPE_CHECKING:
    from ..model.dit import MagiHumanDiT


def network_config(checkpoint: Checkpoint, **overrides) -> DiTConfig:
    """The sizes that a checkpoint of official keys tells. Raises CheckpointError where its shapes make no sense."""
    with explain_shape_errors(checkpoint.name, "network"):
        return DiTConfig.from_state_dict(checkpoint, **overrides)


def split_official(checkpoint: Checkpoint, config: DiTConfig) -> Checkpoint:
    """Official keys -> our keys, lazily. Keys that are no part of the network stay, so that loading names them."""
    table = fused_parts(config)
    entries: dict[str, LazyTensor] = {}
    for key, entry in checkpoint.entries.items():
        for ours, rows in (our_rows(table[key]) if key in table else {key: slice(0, None)}).items():
            stop = entry.height if rows.stop is None else rows.stop
            # A tensor too short for its rows is handed on whole: its shape is then reported as wrong.
            entries[ours] = entry.rows(rows.start, stop) if entry.shape and stop <= entry.height else entry
    return checkpoint.with_entries(entries)


def official_state_dict(dit: MagiHumanDiT) -> dict[str, Tensor]:
    """The network's weights under official keys and shapes, ready to be saved."""
    weights: Mapping[str, Tensor] = dit.state_dict()
    result: dict[str, Tensor] = {}
    for key, parts in fused_parts(dit.config).items():
        tensors = [weights[ours] for ours in our_rows(parts)]
        result[key] = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    return result
