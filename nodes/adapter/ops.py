"""Layers for modules that the core's own loaders build and fill."""

import comfy.ops
import torch


class Operations(comfy.ops.manual_cast):
    """ComfyUI's layers, which cast and offload, with weights that are there from the start.

    With dynamic memory management ComfyUI's Linear and Embedding have no weight until a state dict brings
    it, unless they bring their own way of reading one: then they are built as in torch. The core's loader
    needs that, as it fills weights one by one.
    """

    class Linear(comfy.ops.manual_cast.Linear):
        _load_from_state_dict = torch.nn.Linear._load_from_state_dict

    class Embedding(comfy.ops.manual_cast.Embedding):
        _load_from_state_dict = torch.nn.Embedding._load_from_state_dict
