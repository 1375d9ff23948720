"""The one pickle that is read: the Turbo VAE's training checkpoint."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from .checkpoint import Checkpoint, as_checkpoint, strip_prefix


def open_training_checkpoint(path: Path) -> Checkpoint:
    """Open a training checkpoint (a dictionary with `ema_state_dict`, or a plain table of tensors).

    weights_only lets torch build nothing but tensors and plain containers, and mmap leaves the tensors on
    disk until they are used. A file that needs more than that is refused, never opened another way.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for damaged or hostile files
        raise CheckpointError(f"{path}: cannot be read safely as a training checkpoint "
                              f"({type(error).__name__}). Use a .safetensors version of it.") from None
    content = content if isinstance(content, dict) else {}
    nested = (content.get(name) for name in ("ema_state_dict", "state_dict"))
    content = next((table for table in nested if isinstance(table, dict)), content)
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)
               and value.layout is torch.strided and not value.is_meta}
    if not tensors:
        raise CheckpointError(f"{path}: holds no table of weights. Use a .safetensors version of it.")
    return replace(strip_prefix(as_checkpoint(tensors, str(path)), ("module.",)), path=path)
