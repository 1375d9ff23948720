"""What of the network's state dict core's save nodes write: names and weights that can be read again.

ComfyUI saves a model under its own names, which are ours, and quantized weights as they are. That is read back
(weights.fused), but for two things that only make sense in memory: the zeros that widen MLPs for units of 8 bits, and
NVFP4, which only a ComfyUI can decode.
"""

import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...magihuman_core.checkpoint.quantized import COMFY_FORMATS

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from .network import ComfyDiT

NOTE = ".comfy_quant"


class Made(nn.Parameter):
    """A tensor of known shape and dtype whose values are made when safetensors asks for them on the CPU."""

    make: Callable[[], Tensor]
    device = SimpleNamespace(type="made when saved", index=0)  # type: ignore[assignment]  # so that `to` is called

    def __new__(cls, make, shape, dtype):
        return super().__new__(cls, torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)

    def __init__(self, make, shape, dtype):
        self.make = make

    def to(self, *_, **__):
        return self.make().to(self.dtype).contiguous()


def readable(state: Mapping[str, Tensor], patcher: "ModelPatcher", prefix: str) -> dict[str, Tensor]:
    """A state dict of the network for saving, as ComfyUI makes it, without zeros and NVFP4.

    prefix: of the network in the patcher's model.
    """
    network = patcher.model.diffusion_model
    kept = dict(state)
    for note, value in state.items():
        layer = note.removesuffix(NOTE)
        if note == layer or json.loads(bytes(value.tolist()))["format"] in COMFY_FORMATS:
            continue
        for key in [key for key in kept if key == note or key.startswith(layer + ".weight")]:
            del kept[key]
        key = layer + ".weight"
        kept[key] = Made(_decoding(patcher, prefix + key), network.get_parameter(key).shape, torch.bfloat16)
    for key, value in list(kept.items()):
        rows, columns = _true_size(key, network)
        if rows is not None and value.shape[:1] > (rows,):
            kept[key] = Made(_cutting(value, (slice(rows),)), (rows, *value.shape[1:]), value.dtype)
        elif columns is not None and value.shape[1] > columns:
            kept[key] = Made(_cutting(value, (slice(None), slice(columns))), (value.shape[0], columns), value.dtype)
    return kept


def _true_size(key: str, network: "ComfyDiT") -> tuple[int | None, int | None]:
    """(rows, columns) that a tensor of an MLP has in the file; None for a side that is not padded."""
    config = network.official_config
    _, _, name = key.partition(".mlp.")
    if not name or not key.startswith("blocks."):
        return None, None
    gelu = int(key.split(".")[1]) in config.gelu_layers
    width = config.gelu_width if gelu else config.swiglu_width
    if name in ("up_gate_proj.weight", "up_gate_proj.weight_scale"):
        return (width if gelu else 2 * width), None
    return None, (width if name == "down_proj.weight" else None)


def _decoding(patcher: "ModelPatcher", key: str) -> Callable[[], Tensor]:
    def decode() -> Tensor:
        weight = patcher.patch_weight_to_device(key, device_to=patcher.load_device, return_weight=True)
        return weight.dequantize().cpu()

    return decode


def _cutting(value: Tensor, place: tuple[slice, ...]) -> Callable[[], Tensor]:
    return lambda: value.to("cpu")[place]
