"""The network's tensors: from any layout to official keys, from these to ours, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint, as_checkpoint, strip_prefix
from ..checkpoint.header import quoted
from ..checkpoint.lazy_tensor import LazyTensor, concatenated
from ..checkpoint.quantized import dequantized
from ..errors import CheckpointError
from ..model.config import DiTConfig
from ..model.dit import MagiHumanDiT
from .fused import fused_key, fused_order, fused_parts, our_rows
from .recognize import explain_shape_errors

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "module.", "model.")


def official_network(checkpoint: Mapping[str, Tensor]) -> Checkpoint:
    """Any layout of the network -> official keys and shapes, decoded and joined while they are read.

    Raises CheckpointError when one part of a split tensor is missing, there twice, or has no place in it.
    """
    checkpoint = dequantized(as_checkpoint(checkpoint))
    if any(".block.layers." in key or ".blocks.0.experts." in key for key in checkpoint):
        checkpoint = strip_prefix(checkpoint, PREFIXES)
    groups: dict[str, dict[tuple[str, str], LazyTensor]] = {}
    entries: dict[str, LazyTensor] = {}
    for key, entry in checkpoint.entries.items():
        fused = fused_key(key) if entry.shape else None
        if fused is None:
            entries[key] = entry
        else:
            target, part = fused
            if groups.setdefault(target, {}).setdefault(part, entry) is not entry:
                raise CheckpointError(f"{checkpoint.name}: {quoted(key)} is there under two names. Choose another "
                                      "file.")
    for target, parts in groups.items():
        order = fused_order(parts)
        missing = [part for part in order if part not in parts]
        stray = [part for part in parts if part not in order]
        fault = ""
        if missing:
            fault = f"the part {' '.join(filter(None, missing[0]))} is missing. The file is incomplete"
        elif stray:
            fault = f"the part {' '.join(filter(None, stray[0]))} has no place beside the others. The file is mixed up"
        elif target in entries:
            fault = "it is there both split and joined. The file is incomplete"
        elif len({part.shape[1:] for part in parts.values()}) != 1:
            fault = "its parts have different widths. The file is damaged"
        if fault:
            raise CheckpointError(f"{checkpoint.name}: {quoted(target)} cannot be joined: {fault}: download it again.")
        entries[target] = concatenated([parts[part] for part in order])
    return checkpoint.with_entries(entries)


def network_config(checkpoint: Checkpoint, **overrides) -> DiTConfig:
    """The sizes that a checkpoint of official keys tells. Raises CheckpointError where its shapes make no sense."""
    with explain_shape_errors(checkpoint.name, "network"):
        return DiTConfig.from_state_dict(checkpoint, **overrides)


def split_official(checkpoint: Checkpoint, config: DiTConfig) -> Checkpoint:
    """Official keys -> our keys, lazily. Keys from outside the network stay, so that loading names them."""
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
