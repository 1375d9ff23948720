"""MagiHuman's decoders and encoders as VAEs that core's nodes work with."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from torch import Tensor, nn

from ...magihuman_core.errors import InputError
from ...magihuman_core.loading.vae import load_audio_vae, load_turbo_vae, load_video_vae
from ...magihuman_core.media.waveform import OUTPUT_RATE, resample_recording
from ...magihuman_core.runtime.memory import decoding_activations, encoding_activations
from ...magihuman_core.sizes import FPS
from ...magihuman_core.vae.audio import AudioVAE
from ...magihuman_core.vae.turbo import TurboVAE, TurboVAEConfig
from ...magihuman_core.vae.video import VideoVAE
from ...magihuman_core.weights.audio_keys import official_state_dict
from .ops import Operations
from .patcher import make_patcher


class VAE(comfy.sd.VAE):
    """ComfyUI's VAE around a module of ours: everything its own constructor would have found out by detection."""

    first_stage_model: "VideoStage | AudioStage"

    def __init__(self, module: "VideoStage | AudioStage", dtypes: list[torch.dtype], disable_dynamic=False, **settings):
        mm = comfy.model_management
        self.first_stage_model = module.eval().requires_grad_(False)
        self.working_dtypes = dtypes
        self.device, self.output_device = mm.vae_device(), mm.intermediate_device()
        self.vae_dtype = mm.vae_dtype(self.device, dtypes)
        self.disable_offload = self.not_video = self.handles_tiling = self.crop_input = False
        self.size = self.extra_1d_channel = self.format_encoded = self.pad_channel_value = None
        self.upscale_index_formula = self.downscale_index_formula = None
        self.audio_sample_rate = OUTPUT_RATE
        for name, value in settings.items():
            setattr(self, name, value)
        module.to(self.vae_dtype)
        mm.archive_model_dtypes(module)
        self.patcher = make_patcher(module, self.device, mm.vae_offload_device(), disable_dynamic)
        self.model_size()

    def decode_tiled(self, samples, *args, **kwargs):
        """As core does it, which would make room for a result of any shape before the module sees the latent."""
        shape = list(samples.shape)
        if len(shape) != self.latent_dim + 2 or shape[1] != self.latent_channels:
            wanted = f"[B, {self.latent_channels}, {'n' if self.latent_dim == 1 else 'T, H, W'}]"
            raise InputError(f"The latent has shape {shape}, but this VAE decodes {wanted}: "
                             "connect a latent of its kind, or another VAE.")
        return super().decode_tiled(samples, *args, **kwargs)

    def get_sd(self) -> dict[str, Tensor]:
        """The weights under their official names, which core's save nodes write and every loader reads."""
        return self.first_stage_model.official_state_dict()


def reloadable(load: Callable[..., VAE]) -> Callable[..., VAE]:
    """A loader whose VAE ComfyUI can load anew, for another device or without dynamic memory."""

    def load_patcher(path: str | Path, disable_dynamic=False) -> comfy.model_patcher.ModelPatcher:
        return load_reloadable(path, disable_dynamic).patcher

    @wraps(load)
    def load_reloadable(path: str | Path, disable_dynamic=False) -> VAE:
        vae = load(path, disable_dynamic)
        vae.patcher.cached_patcher_init = (load_patcher, (path,))
        return vae

    return load_reloadable


class VideoStage(nn.Module):
    """A video VAE on raw latents, written into the result window by window, so that memory stays flat."""

    comfy_has_chunked_io = True
    vae: TurboVAE | VideoVAE

    def __init__(self, vae: TurboVAE | VideoVAE):
        super().__init__()
        self.vae = vae

    def official_state_dict(self) -> dict[str, Tensor]:
        return self.vae.state_dict() | self.vae.statistics.tensors()

    def decode_output_shape(self, shape) -> tuple[int, ...]:
        config = self.vae.config
        batch, _, frames, height, width = shape
        factor = config.spatial_factor
        return batch, 3, config.temporal_factor * (frames - 1) + 1, factor * height, factor * width

    def decode(self, z: Tensor, output_buffer: Tensor | None = None, **tiling) -> Tensor:
        """Raw latents [B, C, T, H, W] -> frames [B, 3, F, h, w] in about [-1, 1], into output_buffer if given."""
        self.vae.check_latent(z)
        if output_buffer is None:
            output_buffer = z.new_empty(self.decode_output_shape(z.shape))
        progress = comfy.utils.ProgressBar(output_buffer.shape[2])
        position = 0
        for window in self.vae.decode_windows(z, normalized=False, **tiling):
            comfy.model_management.throw_exception_if_processing_interrupted()
            output_buffer[:, :, position : position + window.shape[2]].copy_(window)
            position += window.shape[2]
            progress.update_absolute(position)
        return output_buffer

    def decode_tiled(self, z: Tensor, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None) -> Tensor:
        """The same in spatial tiles; time goes window by window anyway."""
        tile = max(tile_x or 16, tile_y or 16)
        return self.vae.decode(z, normalized=False, tile=tile, overlap=min(overlap or 0, tile - 1),
                               output_device=comfy.model_management.intermediate_device())

    def encode(self, pixels: Tensor, device=None) -> Tensor:
        """Frames [B, 3, F, h, w] in [-1, 1] -> raw latents."""
        if isinstance(self.vae, TurboVAE):
            raise InputError("The Turbo VAE can only decode. Connect a Wan2.2 VAE where images are encoded.")
        return self.vae.encode(pixels, normalized=False, device=device)

    def encode_tiled(self, pixels: Tensor, **_) -> Tensor:
        return self.encode(pixels)


def video_vae(vae: TurboVAE | VideoVAE, disable_dynamic=False) -> VAE:
    """A VAE of images and time. How much memory it needs is found by a dry run for each shape (runtime.memory)."""
    config = vae.config
    space, time = config.spatial_factor, config.temporal_factor
    device = comfy.model_management.vae_device()

    def encode_memory(shape, dtype) -> int:
        if isinstance(config, TurboVAEConfig):
            return 0  # encode explains
        return encoding_activations(config, tuple(shape), dtype, device.type)

    return VAE(
        VideoStage(vae),
        [torch.bfloat16, torch.float32],
        disable_dynamic,
        latent_channels=config.latent_channels,
        latent_dim=3,
        output_channels=3,
        upscale_ratio=(lambda t: max(0, t * time - time + 1), space, space),
        upscale_index_formula=(time, space, space),
        downscale_ratio=(lambda t: max(0, (t + time - 1) // time), space, space),
        downscale_index_formula=(time, space, space),
        process_input=lambda image: image * 2.0 - 1.0,
        process_output=lambda image: image.add_(1.0).div_(2.0).clamp_(0.0, 1.0),
        memory_used_decode=lambda shape, dtype: decoding_activations(config, shape, dtype, device),
        memory_used_encode=encode_memory,
        crop_input=True,
        handles_tiling=True,
    )


@reloadable
def load_turbo(path: str | Path, disable_dynamic=False) -> VAE:
    """The Turbo VAE: decodes only. Raises CheckpointError."""
    return video_vae(load_turbo_vae(path, operations=Operations), disable_dynamic)


@reloadable
def load_video(path: str | Path, disable_dynamic=False) -> VAE:
    """A Wan2.2-type VAE of any width. Raises CheckpointError."""
    return video_vae(load_video_vae(path, operations=Operations), disable_dynamic)


class AudioStage(nn.Module):
    """The audio VAE: it takes 51.2 kHz, and gives 44.1 kHz, since mp4's AAC does not take 51.2."""

    vae: AudioVAE

    def __init__(self, vae: AudioVAE):
        super().__init__()
        self.vae = vae

    def official_state_dict(self) -> dict[str, Tensor]:
        return official_state_dict(self.vae)

    def decode(self, latent: Tensor) -> Tensor:
        """[B, c, n] -> [B, 2, n * 1764] at 44.1 kHz."""
        return resample_recording(self.vae.decode(latent), self.vae.sample_rate, OUTPUT_RATE)

    def encode(self, waveform: Tensor) -> Tensor:
        """[B, 2, L] at 51.2 kHz -> the mean latent [B, c, ceil(L / hop)]; nothing is cut off or sampled."""
        return self.vae.encode_long(waveform)


@reloadable
def load_audio(path: str | Path, disable_dynamic=False) -> VAE:
    """An Oobleck audio VAE of any width. Raises CheckpointError."""
    vae = load_audio_vae(path, operations=Operations)
    config, device = vae.config, comfy.model_management.vae_device()
    return VAE(
        AudioStage(vae),
        [torch.float32],  # less is audible
        disable_dynamic,
        latent_channels=config.latent_channels,
        latent_dim=1,
        output_channels=config.audio_channels,
        pad_channel_value="replicate",
        upscale_ratio=OUTPUT_RATE // FPS,
        downscale_ratio=vae.hop,
        process_input=lambda audio: audio,
        process_output=lambda audio: audio,
        memory_used_decode=lambda shape, dtype: decoding_activations(config, shape, dtype, device),
        memory_used_encode=lambda shape, dtype: encoding_activations(config, tuple(shape), dtype, device.type),
        audio_sample_rate=vae.sample_rate,
        audio_sample_rate_output=OUTPUT_RATE,
    )


def check(vae, kind: str, channels: int | None = None, encodes: bool = False) -> None:
    """Raise InputError unless a VAE is one for "video" or "audio" latents, of so many channels if they are known.

    encodes: whether it is to encode, which the Turbo VAE cannot.
    """
    videos = "the Wan2.2 VAE" if encodes else "MagiHuman Turbo VAE or the Wan2.2 VAE"
    dims, wanted = {"video": (3, videos), "audio": (1, "MagiHuman Audio VAE")}[kind]
    found = getattr(vae, "latent_channels", None)
    if getattr(vae, "latent_dim", None) != dims or channels not in (None, found):
        raise InputError(f"The {kind} VAE is of another kind (its latents have {found} channels): connect {wanted}.")
