"""IMAGE and AUDIO of ComfyUI: checked, brought to a clip's sizes, encoded, and decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from ...magihuman_core.errors import InputError
from ...magihuman_core.media.image import fit_image, to_rgb, warn_of_cropping
from ...magihuman_core.media.waveform import OUTPUT_RATE, as_audio, resample_recording
from ...magihuman_core.sampling.regenerate import STILL_FRAMES
from ...magihuman_core.sizes import FPS, PIXELS_PER_LATENT, PIXELS_PER_TOKEN, full_audio
from .vae import check

if TYPE_CHECKING:
    from PIL import Image


def to_pil(image: Tensor) -> Image.Image:
    """The first image of an IMAGE batch [B, h, w, c], as RGB; a transparent one on white. Raises InputError."""
    from PIL import Image

    if image.ndim != 4 or 0 in image.shape:
        raise InputError(f"The image has shape {list(image.shape)}, expected [B, h, w, c]. Connect Load Image.")
    if not bool(torch.isfinite(image[0]).all()):
        raise InputError("The image holds values that are not numbers. Choose another one.")
    pixels = (image[0].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return to_rgb(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


def rgb(images: Tensor) -> Tensor:
    """An IMAGE batch [B, h, w, c] as RGB [B, h, w, 3]: gray in all three, transparent parts over white, as `to_pil`."""
    channels = images.shape[-1]
    colors = images[..., :3] if channels > 2 else images[..., :1].expand(*images.shape[:-1], 3)
    if channels in (1, 3):
        return colors
    return torch.lerp(torch.ones_like(colors), colors, images[..., -1:].clamp(0, 1).expand_as(colors))


def image_latent(vae, image: Tensor, like: Tensor, warn: bool = True) -> Tensor:
    """The latent [1, C, 1, H, W] of an IMAGE's first image, cropped to a clip's size; see encode_frames.

    warn: of much that is cut away, which is said once, where the clip's size can still be chosen.
    """
    return encode_frames(vae, _fitted(image, like, warn), like)


def frames_latent(vae, images: Tensor, like: Tensor) -> Tensor:
    """The latent [1, C, T, H, W] of all frames of an IMAGE [F, h, w, c], through any video VAE of ComfyUI.

    like: the clip's video latent. Raises InputError where the VAE makes other latents.
    """
    check(vae, "video", encodes=True)
    found = vae.encode(rgb(images))
    if found.shape[1] != like.shape[1] or found.shape[3:] != like.shape[3:]:
        raise InputError(f"The VAE makes {found.shape[1]} channels of {found.shape[4]}x{found.shape[3]} latent pixels, "
                         f"but the latent has {like.shape[1]} of {like.shape[4]}x{like.shape[3]}: connect the Wan2.2 "
                         "VAE.")
    return found


def still_latent(vae, image: Tensor, like: Tensor) -> Tensor:
    """The latent [1, C, 1, H, W] of an IMAGE's first image, for another place in a clip than its first.

    A latent frame of a moving picture is made of four frames: the picture is encoded as a still.
    """
    still = _fitted(image, like).expand(-1, -1, STILL_FRAMES, -1, -1)
    return encode_frames(vae, still, like)[:, :, -1:]


def _fitted(image: Tensor, like: Tensor, warn: bool = True) -> Tensor:
    """An IMAGE's first image, [1, 3, 1, h, w] in [-1, 1], cropped to a clip's size; see image.fit_image."""
    width, height = (side * PIXELS_PER_LATENT for side in like.shape[:2:-1])
    picture = to_pil(image)
    if warn:
        warn_of_cropping(picture.size, (width, height))
    return fit_image(picture, width, height)


def clip_latents(vae, audio_vae, images: Tensor, audio: dict) -> tuple[Tensor, Tensor]:
    """Both latents, [1, C, T, H, W] and [1, c, 4T - 1], of an IMAGE [F, h, w, c] and its AUDIO.

    The last frame is repeated to fill a latent frame; audio is cut to the frames, or followed by silence.
    Raises InputError for sizes that 32 does not divide, or VAEs of another kind.
    """
    count, height, width = images.shape[:3]
    check_size(width, height)
    check(vae, "video", encodes=True)
    check(audio_vae, "audio")
    like = torch.empty(1, vae.latent_channels, 0, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    filled = torch.cat([images, images[-1:].expand(-(count - 1) % 4, -1, -1, -1)])
    video = frames_latent(vae, filled, like)
    samples = OUTPUT_RATE // FPS
    length = full_audio(video.shape[2])
    waveform = fit_length(resample_recording(*stereo(audio), OUTPUT_RATE), count * samples)
    waveform = fit_length(waveform, length * samples)
    like = torch.empty(1, audio_vae.latent_channels, 0, dtype=video.dtype, device=video.device)
    return video, audio_latent(audio_vae, waveform, OUTPUT_RATE, like)[:, :, :length]


def check_size(width: int, height: int) -> None:
    """Raise InputError for frames of a size that no clip has."""
    if height % PIXELS_PER_TOKEN or width % PIXELS_PER_TOKEN:
        raise InputError(f"The frames are {width}x{height} pixels, expected multiples of 32: resize or "
                         "crop them, or use MagiHuman Fit Clip.")


def encode_frames(vae, frames: Tensor, like: Tensor) -> Tensor:
    """Frames [1, 3, F, h, w] in [-1, 1] -> raw latents [1, C, T, H, W]; see frames_latent."""
    return frames_latent(vae, (rearrange(frames, "1 c f h w -> f h w c") + 1) / 2, like)


def stereo(audio: dict) -> tuple[Tensor, int]:
    """(waveform [2, L], rate) of an AUDIO's first sound, in main memory, wherever a node has left it.

    Raises InputError where there is none.
    """
    if audio is None or audio["waveform"].shape[-1] == 0:
        raise InputError("The audio is empty: it holds no samples. Choose another recording.")
    waveform = audio["waveform"]
    return as_audio((waveform[0] if waveform.ndim == 3 else waveform).cpu(), audio["sample_rate"], "The audio")


def audio_latent(audio_vae, waveform: Tensor, rate: int, like: Tensor) -> Tensor:
    """The mean latent [1, c, n] of a stereo waveform [2, L] at any rate, through any audio VAE of ComfyUI.

    like: the clip's audio latent. Raises InputError where the VAE makes other latents.
    """
    check(audio_vae, "audio")
    waveform = resample_recording(waveform, rate, audio_vae.audio_sample_rate)
    found = audio_vae.encode(rearrange(waveform, "c n -> 1 n c"))
    if found.shape[1] != like.shape[1]:
        raise InputError(f"The audio VAE makes {found.shape[1]} channels, but the latent's sound has "
                         f"{like.shape[1]}: connect MagiHuman's audio VAE.")
    return found.to(like)


def decode_audio(audio_vae, latent: Tensor, rate: int) -> Tensor:
    """Waveform [2, L] of an audio latent [1, c, n] at a rate, through any audio VAE of ComfyUI."""
    waveform = audio_vae.decode(latent).movedim(-1, 1)[0].float().cpu()
    given = getattr(audio_vae, "audio_sample_rate_output", None) or audio_vae.audio_sample_rate
    return resample_recording(waveform, given, rate)


def fit_length(waveform: Tensor, samples: int) -> Tensor:
    """A waveform cut to so many samples, or followed by silence."""
    return torch.nn.functional.pad(waveform[:, :samples], (0, max(0, samples - waveform.shape[1])))
