"""The network under its official names, whatever layout a file has."""

from collections.abc import Mapping

from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint, renamed, strip_prefix
from ..checkpoint.header import quoted
from ..checkpoint.lazy_tensor import LazyTensor, concatenated
from ..checkpoint.quantized import dequantized
from ..errors import CheckpointError
from .fused import fused_key, fused_order

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "module.", "model.")


def official_network(checkpoint: Mapping[str, Tensor]) -> Checkpoint:
    """Any layout of the network -> official keys and shapes, decoded and joined while they are read.

    Raises CheckpointError when one part of a split tensor is missing.
    """
    checkpoint = dequantized(renamed(checkpoint, lambda key: key))
    if any(".block.layers." in key for key in checkpoint):
        checkpoint = strip_prefix(checkpoint, PREFIXES)
    groups: dict[str, dict[tuple[str, str], LazyTensor]] = {}
    entries: dict[str, LazyTensor] = {}
    for key, entry in checkpoint.entries.items():
        fused = fused_key(key) if entry.shape else None
        if fused is None:
            entries[key] = entry
        else:
            target, part = fused
            groups.setdefault(target, {})[part] = entry
    for target, parts in groups.items():
        order = fused_order(parts)
        missing = [part for part in order if part not in parts]
        if missing or target in entries:
            what = " ".join(filter(None, missing[0])) if missing else "the joined tensor"
            fault = f"the part {what} is missing" if missing else "it is there both split and joined"
            raise CheckpointError(f"{checkpoint.name}: {quoted(target)} cannot be joined: {fault}. "
                                  "The file is incomplete: download it again.")
        entries[target] = _joined(checkpoint, target, [parts[part] for part in order])
    return checkpoint.with_entries(entries)


def _joined(checkpoint: Checkpoint, target: str, parts: list[LazyTensor]) -> LazyTensor:
    if len({part.shape[1:] for part in parts}) != 1:
        raise CheckpointError(f"{checkpoint.name}: {quoted(target)} cannot be joined: its parts have "
                              "different widths. The file is damaged: download it again.")
    return concatenated(parts)
