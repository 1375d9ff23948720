"""From a checkpoint to a ComfyUI MODEL."""

import math
from dataclasses import replace

import comfy.model_management as mm
import comfy.ops
import comfy.patcher_extension
import torch

from ...magihuman_core.checkpoint.assign import check_tensors
from ...magihuman_core.checkpoint.checkpoint import Checkpoint
from ...magihuman_core.model.config import DiTConfig
from ...magihuman_core.model.dit import MagiHumanDiT
from ...magihuman_core.recipes import RECIPES
from ...magihuman_core.runtime.fuse import can_fuse, fuse_elementwise
from ...magihuman_core.weights.align import aligned
from ...magihuman_core.weights.dit_keys import network_config, split_official
from ...magihuman_core.weights.open import open_checkpoint
from ...magihuman_core.weights.precision import may_quantize
from ...magihuman_core.weights.roles import window_seconds
from . import weights
from .latent_format import Preview, preview_in
from .lora import add_alias_layers, patcher_class
from .model import ModelConfig
from .patcher import is_dynamic, make_patcher


def load_model(path, role: str, dtype: torch.dtype | None = None, quantize: str | None = None, fast=False,
               fuse: bool | None = None, model_options=None, disable_dynamic=False):
    """A MODEL from a file or a folder of shards, in any layout the core reads; see build_model."""
    device = (model_options or {}).get("load_device", mm.get_torch_device())
    checkpoint = open_checkpoint(path, "network", mapped=is_dynamic(device, disable_dynamic))
    sizes = network_config(checkpoint)
    config = replace(sizes, **RECIPES[role].overrides(sizes.layers))
    tensors = split_official(checkpoint, config)
    patcher = build_model(tensors, config, role, dtype=dtype, quantize=quantize, fast=fast, fuse=fuse,
                          model_options=model_options, disable_dynamic=disable_dynamic,
                          preview=preview_in(checkpoint.metadata, config.video_channels))
    patcher.model.window = window_seconds(RECIPES[role], checkpoint.metadata)
    # ComfyUI loads a model anew where it needs one without dynamic memory, or one for another device.
    patcher.cached_patcher_init = (load_model, (path, role, dtype, quantize, fast, fuse, model_options))
    return patcher


def build_model(tensors: Checkpoint, config: DiTConfig, role: str, *, dtype: torch.dtype | None = None,
                quantize: str | None = None, fast=False, fuse: bool | None = None, model_options=None,
                disable_dynamic=False, preview: Preview | None = None):
    """A MODEL from a checkpoint of our own keys (weights.dit_keys), streamed tensor by tensor.

    dtype, quantize: how the blocks' weights are kept, as a torch dtype or in one of ComfyUI's formats; None: as the
    file has them where that is such a format, else what ComfyUI finds best for this device.
    fast: let quantized weights be multiplied in their format. fuse: as for load_dit. preview: see
    latent_format.preview_in.
    Raises CheckpointError and InputError.
    """
    options = model_options or {}
    device = options.get("load_device", mm.get_torch_device())
    offload = options.get("offload_device", mm.unet_offload_device())
    fuse = can_fuse(fuse, device)  # what cannot be done is said before weights are read
    check_tensors(tensors, MagiHumanDiT(config, device="meta").state_dict(), tensors.name)

    dtype = options.get("dtype", dtype)
    if dtype is not None:
        quantize = weights.BY_DTYPE.get(dtype, quantize)
    quantized = weights.formats(tensors, may_quantize, quantize) if dtype is None or quantize else {}
    official = config
    if fast:
        tensors, config = aligned(tensors, config)

    model_config = ModelConfig(config, role, preview)
    supported = model_config.supported_inference_dtypes
    if dtype is None or quantized:
        count = sum(math.prod(tensors.shape(key)) for key in tensors)
        stored = None if quantized else weights.main_dtype(tensors)
        dtype = mm.unet_dtype(device=device, model_params=count, supported_dtypes=supported, weight_dtype=stored)
        if dtype == torch.float32 and stored is not None and stored.itemsize == 2 and not mm.args.fp32_unet:
            dtype = stored  # computed in fp32 alone: a cast of each layer costs little, twice the memory much
    manual_cast = mm.unet_manual_cast(None if quantized else dtype, device, supported)
    model_config.set_inference_dtype(dtype, manual_cast, device=device)
    model_config.unet_config["compute_dtype"] = manual_cast or dtype
    model_config.custom_operations = options.get("custom_operations")
    if quantized:
        model_config.quant_config = {"mixed_ops": True}

    # Nothing is allocated until the weights come; layers for quantized weights never allocate before that.
    model = model_config.get_model(None, device=None if quantized else torch.device("meta"))
    model.device = offload
    network = model.diffusion_model
    network.load_state_dict(weights.state_dict(tensors, dtype, quantized, fast), strict=False, assign=True)
    network.requires_grad_(False)
    fuse_elementwise(network, fuse, device)
    add_alias_layers(network, official)

    plain = disable_dynamic or mm.is_device_cpu(device)
    patcher = make_patcher(model, device, offload, plain, patcher_class)
    patcher.add_callback(comfy.patcher_extension.CallbacksMP.ON_LOAD, move_unmanaged_weights)
    return patcher


def move_unmanaged_weights(patcher, device: torch.device | None, *_) -> None:
    """Norms and rotary bands to the device: with a model that is loaded in part ComfyUI may leave them behind.

    They are a few MB, and no layers of ComfyUI's, which would fetch them when they run.
    """
    for module in patcher.model.diffusion_model.modules():
        if device is None or isinstance(module, comfy.ops.CastWeightBiasOp):
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device != device:
                setattr(module, name, torch.nn.Parameter(parameter.to(device), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))
