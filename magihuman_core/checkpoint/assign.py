"""Filling a module with the tensors of a checkpoint, one at a time."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..nn.quantized_linear import NarrowLinear
from .checkpoint import Checkpoint, as_checkpoint
from .finite import check_finite
from .header import quoted


def assign_weights(module: nn.Module, tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None = None,
                   device: torch.device | str = "cpu", keep_fp32: Callable[[str], bool] = lambda key: False,
                   skip: Callable[[str], bool] = lambda key: False) -> None:
    """Put every tensor in its place in module, which may have been built on the meta device.

    tensors must hold exactly the keys and shapes of module.state_dict(). Floating tensors are cast to dtype (None: kept
    as stored) while they are read, those for which keep_fp32(key) holds to float32, and those of layers that keep a
    dtype of their own to that; the model never exists twice. Those for which skip(key) holds stay as they are, for
    someone else to fill. A tensor that is in memory already, with the right dtype and device, is taken over and not
    copied.
    Raises CheckpointError when keys are missing or left over, when a shape differs, or a weight is NaN or infinite.
    """
    checkpoint = as_checkpoint(tensors)
    places = dict(_places(module))
    check_tensors(checkpoint, {key: place[0] for key, place in places.items()}, checkpoint.name)
    for key, (place, owner, leaf) in places.items():
        if skip(key):
            continue
        own = place.dtype if isinstance(owner, NarrowLinear) else dtype
        wanted = torch.float32 if keep_fp32(key) else own
        tensor = checkpoint.read(key, wanted if checkpoint.dtype(key).is_floating_point else None)
        check_finite(tensor, key, checkpoint.name)
        tensor = tensor.to(device)
        if leaf in owner._parameters:
            owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        else:
            owner._buffers[leaf] = tensor


def _places(module: nn.Module):
    """(key, (tensor, owning module, attribute)) for all that a state dict would hold."""
    for prefix, owner in module.named_modules(remove_duplicate=False):
        dot = prefix + "." if prefix else ""
        for leaf, tensor in (owner._parameters | owner._buffers).items():
            if tensor is not None and leaf not in owner._non_persistent_buffers_set:
                yield dot + leaf, (tensor, owner, leaf)


def check_tensors(checkpoint: Checkpoint, wanted: Mapping[str, Tensor], name: str) -> None:
    """Raise CheckpointError unless names, shapes and sorts of numbers are the wanted ones; nothing is read."""
    missing = [key for key in wanted if key not in checkpoint]
    unexpected = [key for key in checkpoint if key not in wanted]
    if missing or unexpected:
        parts = [f"{len(keys)} {what} ({', '.join(map(quoted, keys[:3]))}{', ...' if len(keys) > 3 else ''})"
                 for keys, what in ((missing, "missing"), (unexpected, "unexpected")) if keys]
        raise CheckpointError(f"{name}: its tensors do not fit this model: {' and '.join(parts)}. "
                              "Choose a file made for it.")
    for key, place in wanted.items():
        if checkpoint.shape(key) != tuple(place.shape):
            raise CheckpointError(f"{name}: {quoted(key)} has shape {list(checkpoint.shape(key))}, expected "
                                  f"{list(place.shape)}. The file belongs to another model or size.")
        if checkpoint.dtype(key).is_floating_point != place.is_floating_point():
            raise CheckpointError(f"{name}: {quoted(key)} is stored as {str(checkpoint.dtype(key))[6:]}, which "
                                  "is not a form of weights that is known here. Choose another file.")
