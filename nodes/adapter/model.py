"""MAGIHUMAN as a ComfyUI MODEL: the model class around the network, its configuration, and the loader."""

import math
from dataclasses import replace

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.nested_tensor
import comfy.patcher_extension
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ...magihuman_core.checkpoint.assign import check_tensors
from ...magihuman_core.errors import InputError
from ...magihuman_core.model.config import PATCH, DiTConfig
from ...magihuman_core.model.dit import MagiHumanDiT
from ...magihuman_core.recipes import RECIPES
from ...magihuman_core.runtime.memory import network_activations
from ...magihuman_core.sampling.super_resolution import cover_audio, cover_video
from ...magihuman_core.sizes import TEXT_TOKENS
from ...magihuman_core.weights.align import aligned
from ...magihuman_core.weights.dit_keys import network_config, split_official
from ...magihuman_core.weights.open import open_checkpoint
from ...magihuman_core.weights.precision import may_quantize
from . import weights
from .lora import add_alias_layers, is_alias, patcher_class
from .network import ComfyDiT
from .streams import check_shapes

START = 0.999  # a schedule that begins at or above this sigma begins from the start state, not from a mixture


class LatentFormat(comfy.latent_formats.Wan22):
    """Raw Wan2.2 latents on sockets, normalized ones in the network; audio passes as it is."""

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, video_channels: int = 48, audio_channels: int = 64):
        super().__init__()
        self.channels = (video_channels, audio_channels)
        # The wider stream's: core's step cache slices both streams to this many channels.
        self.latent_channels = max(self.channels)
        if video_channels != self.latents_mean.shape[1]:  # a small network of its own: nothing to normalize by
            self.latents_mean = torch.zeros(1, video_channels, 1, 1, 1)
            self.latents_std = torch.ones(1, video_channels, 1, 1, 1)
            self.latent_rgb_factors = None
        # Instead of core's previews, which always show frame 0: with a reference image that never changes.
        self.latent_rgb_factors_reshape = middle_frame

    def fix_empty_latent(self, latent: Tensor) -> comfy.nested_tensor.NestedTensor:
        """Give an empty video latent of another node its sound, so that any such node can start a clip."""
        video = latent[:, : self.channels[0]].clone()
        audio = latent.new_zeros(latent.shape[0], self.channels[1], 4 * (video.shape[2] - 1) + 1)
        return comfy.nested_tensor.NestedTensor([video, audio])


def middle_frame(x0: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B, C, 1, H, W], from the middle of the clip."""
    return x0[:, :, x0.shape[2] // 2 :][:, :, :1] if x0.ndim == 5 else x0


class FlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """Rectified flow whose schedule begins from the model's own start state.

    noise_level: None for a model that makes a clip from noise; for super-resolution the level of noise that covers
    the upsampled clip it starts from. So every sampler of ComfyUI starts right, with any noise node.
    """

    noise_level: int | None = None

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        if float(sigma.max()) < START:
            return super().noise_scaling(sigma, noise, latent_image, max_denoise)
        return start_state(noise, latent_image, self.noise_level)


def start_state(noise: Tensor, latent: Tensor, noise_level: int | None) -> Tensor:
    """What sampling begins with: noise, or for super-resolution the clip under noise of a level."""
    return noise.clone() if noise_level is None else cover_video(latent, noise, noise_level)


class MagiHumanModel(comfy.model_base.BaseModel):
    """The network with its schedule, its latents and its conditions."""

    def __init__(self, model_config: "ModelConfig", device=None):
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=ComfyDiT)
        self.model_sampling = FlowSampling(model_config)
        self.role = model_config.role
        if self.super_resolution:
            self.model_sampling.noise_level = RECIPES[self.role].noise_level

    @property
    def super_resolution(self) -> bool:
        return RECIPES[self.role].super_resolution

    @property
    def network_config(self) -> DiTConfig:
        return self.diffusion_model.config

    def get_dtype_inference(self):
        # Latents and text reach the network as they are; it casts where it computes in less.
        return torch.float32

    def extra_conds(self, **kwargs):
        config = self.network_config
        shapes = kwargs.get("latent_shapes")
        found = [tuple(shape) for shape in shapes or [kwargs["noise"].shape]]
        check_shapes(found, (config.video_channels, config.audio_channels))
        out = super().extra_conds(**kwargs)
        out["latent_shapes"] = comfy.conds.CONDConstant(shapes)
        text = kwargs.get("cross_attn")
        if text is None or text.shape[-1] != config.text_channels:
            given = "none" if text is None else f"{text.shape[-1]} channels"
            raise InputError(
                f"The conditioning has {given}, but this model takes text of {config.text_channels}: encode the "
                "prompt with a CLIP from Load MagiHuman Text Encoder."
            )
        # Never one that repeats tokens to make batches: attention is joint, every token counts.
        out["c_crossattn"] = comfy.conds.CONDRegular(text)
        return out

    def scale_latent_inpaint(self, sigma, noise, latent_image, **kwargs):
        """What the network sees of frozen content: the clean values; in super-resolution, of sound a noised context."""
        if not self.super_resolution or self.latent_shapes is None or len(self.latent_shapes) < 2:
            return latent_image
        start = math.prod(self.latent_shapes[0][1:])  # where the sound begins in the packed vector
        seen = latent_image.clone()
        seen[..., start:] = cover_audio(latent_image[..., start:], noise[..., start:])
        return seen

    def process_latent_in(self, latent):
        return self._video(latent, self.latent_format.process_in)

    def process_latent_out(self, latent):
        return self._video(latent, self.latent_format.process_out)

    def _video(self, latent, function):
        """Apply a function to the video stream, of a nested latent or of the packed vector."""
        if latent.is_nested:
            video, *rest = latent.unbind()
            return comfy.nested_tensor.NestedTensor([function(video), *rest])
        if self.latent_shapes is None or len(self.latent_shapes) < 2:
            return function(latent) if latent.ndim == 5 else latent
        video, *rest = comfy.utils.unpack_latents(latent, self.latent_shapes)
        return comfy.utils.pack_latents([function(video), *rest])[0]

    def memory_required(self, input_shape, cond_shapes=None):
        """Bytes that activations take at their peak, from the packed latent's size."""
        config = self.network_config
        batch, values = input_shape[0], math.prod(input_shape[1:])
        # The packed size does not tell the clip's shape: one row with as many tokens stands for it. The few
        # values of the sound count as picture here, which makes up for its narrower tokens.
        row = (1, PATCH, PATCH * max(1, values // (config.video_channels * PATCH**2)))
        compute_dtype = self.diffusion_model.compute_dtype
        return batch * network_activations(config, row, 1, TEXT_TOKENS, compute_dtype, "cuda", False)


class ModelConfig(comfy.supported_models_base.BASE):
    """What ComfyUI asks of a model before it is built."""

    unet_config = {"image_model": "magihuman"}
    unet_extra_config: dict = {}
    sampling_settings = {"shift": 5.0, "multiplier": 1000}
    latent_format = LatentFormat
    memory_usage_factor = 1.0  # not used: MagiHumanModel.memory_required computes bytes
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    def __init__(self, config: DiTConfig, role: str):
        super().__init__({"image_model": "magihuman", "config": config})
        self.latent_format = LatentFormat(config.video_channels, config.audio_channels)
        self.role = role

    def get_model(self, state_dict, prefix="", device=None):
        return MagiHumanModel(self, device=device)

    def clip_target(self, state_dict=None):
        return None  # the text encoder is a file of its own

    def process_unet_state_dict_for_saving(self, state_dict):
        kept = {key: value for key, value in state_dict.items() if not is_alias(key)}
        return super().process_unet_state_dict_for_saving(kept)


def build_model(tensors, config: DiTConfig, role: str, *, dtype=None, quantize=None, fast=False, model_options=None,
                disable_dynamic=False):
    """A MODEL from a checkpoint of our own keys (weights.dit_keys), streamed tensor by tensor.

    dtype, quantize: how the blocks' weights are kept, as a torch dtype or in one of ComfyUI's formats; None: as the
    file has them where that is such a format, else what ComfyUI finds best for this device.
    fast: let quantized weights be multiplied in their format. Raises CheckpointError and InputError.
    """
    mm, options = comfy.model_management, model_options or {}
    device = options.get("load_device", mm.get_torch_device())
    offload = options.get("offload_device", mm.unet_offload_device())
    model_config = ModelConfig(config, role)
    supported = model_config.supported_inference_dtypes
    check_tensors(tensors, MagiHumanDiT(config, device="meta").state_dict(), tensors.name)

    dtype = options.get("dtype", dtype)
    quantize = weights.BY_DTYPE.get(dtype, quantize)
    official = config
    quantized = weights.formats(tensors, may_quantize, quantize) if dtype is None or quantize else {}
    if fast or "int8_tensorwise" in quantized.values():  # which ComfyUI always multiplies as such
        tensors, config = aligned(tensors, config)
        model_config = ModelConfig(config, role)
    if dtype is None or quantized:
        count = sum(math.prod(tensors.shape(key)) for key in tensors)
        stored = None if quantized else main_dtype(tensors)
        dtype = mm.unet_dtype(device=device, model_params=count, supported_dtypes=supported, weight_dtype=stored)
    manual_cast = mm.unet_manual_cast(None if quantized else dtype, device, supported)
    model_config.set_inference_dtype(dtype, manual_cast, device=device)
    model_config.unet_config["compute_dtype"] = manual_cast or dtype
    model_config.custom_operations = options.get("custom_operations")
    if quantized:
        model_config.quant_config = {"mixed_ops": True}

    # Nothing is allocated until the weights come; layers for quantized weights never allocate before that.
    model = model_config.get_model(None, device=None if quantized else torch.device("meta"))
    model.device = offload
    state = weights.state_dict(tensors, dtype, quantized, fast)
    model.diffusion_model.load_state_dict(state, strict=False, assign=True)
    model.diffusion_model.requires_grad_(False)
    add_alias_layers(model.diffusion_model, official)

    plain = disable_dynamic or mm.is_device_cpu(device)
    base = comfy.model_patcher.ModelPatcher if plain else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(base)(model, load_device=device, offload_device=offload)
    patcher.add_callback(comfy.patcher_extension.CallbacksMP.ON_LOAD, move_unmanaged_weights)
    return patcher


def move_unmanaged_weights(patcher, device_to, *_) -> None:
    """Norms and rotary bands to the device: with a model that is loaded in part ComfyUI may leave them behind.

    They are a few MB, and no layers of ComfyUI's, which would fetch them when they run.
    """
    for module in patcher.model.diffusion_model.modules():
        if device_to is None or hasattr(module, "comfy_cast_weights"):
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device != device_to:
                setattr(module, name, torch.nn.Parameter(parameter.to(device_to), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device_to))


def main_dtype(tensors) -> torch.dtype:
    """The dtype that most of a checkpoint's values have."""
    counts: dict[torch.dtype, int] = {}
    for key in tensors:
        counts[tensors.dtype(key)] = counts.get(tensors.dtype(key), 0) + math.prod(tensors.shape(key))
    return max(counts, key=counts.__getitem__)


def load_model(path, role: str, dtype: torch.dtype | None = None, quantize: str | None = None, fast=False,
               model_options=None, disable_dynamic=False):
    """A MODEL from a file or a folder of shards, in any layout the core reads; see build_model."""
    checkpoint = open_checkpoint(path, "network", mapped=True)
    sizes = network_config(checkpoint)
    config = replace(sizes, **RECIPES[role].overrides(sizes.layers))
    tensors = split_official(checkpoint, config)
    patcher = build_model(tensors, config, role, dtype=dtype, quantize=quantize, fast=fast,
                          model_options=model_options, disable_dynamic=disable_dynamic)
    # ComfyUI loads a model anew where it needs one without dynamic memory, or one for another device.
    patcher.cached_patcher_init = (load_model, (path, role, dtype, quantize, fast, model_options))
    return patcher
