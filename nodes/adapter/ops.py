"""Layers for modules that the core's own loaders build and fill."""

from types import SimpleNamespace
from typing import Any

import comfy.ops
import torch


class LoadedLayers(comfy.ops.manual_cast):
    """ComfyUI's layers, which cast and offload, with weights that are there from the start.

    With dynamic memory management ComfyUI's Linear and Embedding have no weight until a state dict brings
    it, unless they bring their own way of reading one: then they are built as in torch. The core's loader
    needs that, as it fills weights one by one.
    """

    class Linear(comfy.ops.manual_cast.Linear):
        _load_from_state_dict = torch.nn.Linear._load_from_state_dict

    class Embedding(comfy.ops.manual_cast.Embedding):
        _load_from_state_dict = torch.nn.Embedding._load_from_state_dict


Operations: Any = LoadedLayers  # the core's protocol is met by a class, which mypy cannot tell


def quantized_operations(compute_dtype: torch.dtype, device) -> Any:
    """ComfyUI's layers for quantized weights, which bring their weights with a state dict, and plain embeddings."""
    asked = SimpleNamespace(quant_config={"mixed_ops": True})
    layers = comfy.ops.pick_operations(None, compute_dtype, load_device=device, model_config=asked)
    return type("QuantizedOperations", (layers,), {"Embedding": Operations.Embedding})
