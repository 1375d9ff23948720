"""The network's weights as ComfyUI's layers want them: plain, cast, or quantised with a scale."""

import json

import torch
from torch import Tensor

from ...magihuman_core.weights import Checkpoint
from ...magihuman_core.weights.dit_keys import keep_fp32
from ...magihuman_core.weights.quantised import FP8, Quantised, as_quantised


def is_quantised(tensors: Checkpoint) -> bool:
    """Whether a file holds fp8 weights with scales that ComfyUI can compute with as they are."""
    return any(_native(entry) for key, entry in tensors.entries.items() if _may_quantise(key))


def state_dict(tensors: Checkpoint, dtype: torch.dtype, quantise: torch.dtype | None, fast: bool) -> dict[str, Tensor]:
    """Everything a state dict needs, read tensor by tensor.

    dtype: of the blocks' weights that are not quantised. quantise: fp8 dtype of those that are, where the file
    has them in more; None: none are. fast: multiply in fp8 too, on cards that can; otherwise only memory is saved.
    """
    state: dict[str, Tensor] = {}
    for key, entry in tensors.entries.items():
        if keep_fp32(key):
            state[key] = entry.load(torch.float32)
        elif quantise is None or not _may_quantise(key):
            state[key] = entry.load(dtype)
        else:
            native = _native(entry)
            data, scale = native if native else _to_fp8(entry.load(None), quantise)
            layer = key.removesuffix(".weight")
            note = {"format": str(data.dtype).removeprefix("torch."), "full_precision_matrix_mult": not fast}
            state[key], state[f"{layer}.weight_scale"] = data, scale
            state[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)
    return state


def _may_quantise(key: str) -> bool:
    # The gate is small, and worth its precision.
    return key.startswith("blocks.") and not keep_fp32(key) and "linear_gate" not in key


def _native(entry) -> tuple[Tensor, Tensor] | None:
    """(data, scale) of an entry stored in fp8 with one scale for all of it."""
    stored: Quantised | None = as_quantised(entry)
    if stored is None or stored.data.dtype not in FP8 or stored.scale is None:
        return None
    scale = stored.scale.load(torch.float32)
    if scale.ndim and not bool((scale == scale.flatten()[0]).all()):
        return None
    return stored.data.load(), scale.flatten()[0].clone()


def _to_fp8(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    weight = weight.float()
    scale = (weight.abs().max() / torch.finfo(dtype).max).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight / scale).to(dtype), scale
