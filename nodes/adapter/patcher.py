"""ComfyUI's model patchers, with whatever the installed version's constructor wants to know."""

import inspect
from pathlib import Path
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


def make_patcher(model, load_device, offload_device, source=None, disable_dynamic=False, kind=None) -> Any:
    """A patcher around a module: ComfyUI's best for this system, or its plain one.

    source: the file or folder that the weights were read from, from whose disk newer versions may read them anew.
    kind: makes the class from ComfyUI's own.
    """
    base = Patcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    options = {}
    if isinstance(source, (str, Path)) and "fast_disk" in inspect.signature(base.__init__).parameters:
        from comfy import storage  # of the same versions

        options["fast_disk"] = storage.model_fast_disk([str(source)])
    return (base if kind is None else kind(base))(
        model, load_device=load_device, offload_device=offload_device, **options)
