"""ComfyUI's model patchers."""

from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch

Patcher = comfy.model_patcher.ModelPatcher


def is_dynamic(device: torch.device, disable_dynamic=False) -> bool:
    """Whether a model for this device gets a patcher that copies weights to memory of its own before it uses them.

    ComfyUI's plain one writes into the model's weights, for LoRA of hooks, and locks their pages: they may be no views
    of a file.
    """
    return (not disable_dynamic and not comfy.model_management.is_device_cpu(device)
            and comfy.model_patcher.CoreModelPatcher is not comfy.model_patcher.ModelPatcher)


def make_patcher(model, load_device, offload_device, disable_dynamic=False, kind=None) -> Any:
    """A patcher around a module: ComfyUI's best for this system, or its plain one.

    kind: makes the class from ComfyUI's own. Newer cores ask for the weights' disk (fast_disk), to read them from it
    again instead of keeping them in locked memory. They do that for tensors of their own reader alone; ours stay there.
    """
    base = Patcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    return (base if kind is None else kind(base))(model, load_device=load_device, offload_device=offload_device)
