"""The network's weights as ComfyUI's layers want them: plain, cast, or quantized with scales.

A format is one of ComfyUI's names (comfy.quant_ops.QUANT_ALGOS). Files that are stored in it are taken as they
are, all others rounded while they are read.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from comfy.quant_ops import QUANT_ALGOS, get_layout_class
from torch import Tensor

from ...magihuman_core.checkpoint.checkpoint import Checkpoint
from ...magihuman_core.checkpoint.lazy_tensor import LazyTensor
from ...magihuman_core.checkpoint.quantize import to_fp8, to_int8
from ...magihuman_core.checkpoint.quantized import COMFY_FORMATS, as_quantized
from ...magihuman_core.errors import InputError
from ...magihuman_core.weights.precision import keep_fp32

# dtype -> ComfyUI's format of weights stored in it
BY_DTYPE = {dtype: name for name, dtype in COMFY_FORMATS.items()}
NVFP4 = "nvfp4"
NVFP4_MAX = 448 * 6  # the largest value, with the largest scale of a block


def main_dtype(tensors: Checkpoint) -> torch.dtype:
    """The dtype that most of a checkpoint's values have."""
    counts: Counter[torch.dtype] = Counter()
    for key in tensors:
        counts[tensors.dtype(key)] += math.prod(tensors.shape(key))
    return counts.most_common(1)[0][0]


def formats(tensors: Checkpoint, large: Callable[[str], bool], quantize: str | None = None) -> dict[str, str]:
    """Key -> format of the weights to be kept quantized: all large ones, or (None) those that the file has so."""
    found = {key: quantize or _stored_format(entry) for key, entry in tensors.entries.items() if large(key)}
    return {key: name for key, name in found.items() if name is not None}


def _stored_format(entry: LazyTensor) -> str | None:
    stored = as_quantized(entry)
    return None if stored is None else BY_DTYPE.get(stored.data.dtype)


def state_dict(tensors: Checkpoint, dtype: torch.dtype, quantized: Mapping[str, str], fast: bool) -> dict[str, Tensor]:
    """Everything a state dict needs, read tensor by tensor.

    dtype: of the blocks' weights that are not quantized. quantized: from `formats`.
    fast: multiply in that format too, on cards that can; otherwise only memory is saved.
    Raises InputError for a format that this ComfyUI does not know.
    """
    for name in set(quantized.values()):
        if name not in QUANT_ALGOS:
            raise InputError(f"This ComfyUI does not know the format {name}: choose another weight_dtype, or update "
                             "ComfyUI.")
    state: dict[str, Tensor] = {}
    for key, entry in tensors.entries.items():
        if keep_fp32(key):
            state[key] = entry.read(torch.float32)
        elif key not in quantized:
            state[key] = entry.read(dtype)
        else:
            note = {"format": quantized[key], "full_precision_matrix_mult": not fast}
            for ending, tensor in _quantized(entry, quantized[key]).items():
                state[key + ending] = tensor
            state[key.removesuffix("weight") + "comfy_quant"] = torch.tensor(
                list(json.dumps(note).encode()), dtype=torch.uint8)
    return state


def _quantized(entry: LazyTensor, name: str) -> dict[str, Tensor]:
    """A weight in a format: ending of the key -> tensor."""
    if name == NVFP4:  # blocks of 16, padded and interleaved as the card wants them: by ComfyUI's own code
        layout = get_layout_class(QUANT_ALGOS[name]["comfy_tensor_layout"])
        weight = entry.read(torch.bfloat16)
        scale = weight.abs().max().float().clamp_min(1e-12) / NVFP4_MAX
        return layout.state_dict_tensors(*layout.quantize(weight, scale))
    stored, dtype = as_quantized(entry), COMFY_FORMATS[name]
    if stored is not None and stored.data.dtype == dtype:
        factors = stored.scale.read(torch.float32)
        if dtype == torch.int8:
            return {"": stored.data.read(), "_scale": factors.reshape(-1, 1) if factors.ndim else factors}
        if bool((factors == factors.flatten()[0]).all()):  # else parts have scales of their own: ComfyUI wants one
            return {"": stored.data.read(), "_scale": factors.flatten()[0].clone()}
    data, scales = to_int8(entry) if dtype == torch.int8 else to_fp8([entry], dtype)[0]
    return {"": data.read(), "_scale": scales.read()}
