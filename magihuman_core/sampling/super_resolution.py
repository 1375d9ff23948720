"""What the super-resolution network starts from (docs/model.md)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..recipes import SR_540P

LEVELS = 1000


def zero_snr_table(count: int = LEVELS) -> Tensor:
    """Signal levels sqrt(alpha_bar) of the scaled-linear schedule, stretched to end at zero; fp32 [count].

    The stretching is that of arXiv 2305.08891 (zero terminal signal-to-noise ratio).
    """
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, count, dtype=torch.float64) ** 2
    signal = torch.cumprod(1 - beta, 0).float().sqrt()
    return (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))


def upsample(video: Tensor, height: int, width: int) -> Tensor:
    """[B, C, T, h, w] -> fp32 [B, C, T, height, width]: trilinear, the corners' centres aligned."""
    return F.interpolate(video.float(), (video.shape[2], height, width), mode="trilinear", align_corners=True)


def prepare_super_resolution(video: Tensor, audio: Tensor, height: int, width: int, *, video_noise: Tensor | None,
                             audio_noise: Tensor, noise_level: int = SR_540P.noise_level,
                             audio_noise_scale: float = SR_540P.audio_noise) -> tuple[Tensor, Tensor]:
    """Base latents -> (video to start from, audio as context).

    video: [B, C, T, h, w] normalized; audio: [B, a, A]; height, width: of the target, in latent pixels;
    video_noise: [B, C, T, height, width]; audio_noise like audio. noise_level indexes the table above;
    0 leaves the upsampled video without noise (then video_noise may be None). The audio context is
    never the result's audio: that stays the base audio. Raises InputError.
    """
    if not 0 <= noise_level < LEVELS:
        raise InputError(f"noise_level is {noise_level}, expected 0 to {LEVELS - 1}.")
    video = upsample(video, height, width)
    if noise_level:
        if video_noise is None or video_noise.shape != video.shape:
            given = None if video_noise is None else tuple(video_noise.shape)
            raise InputError(f"video_noise has shape {given}, expected {tuple(video.shape)}.")
        video = cover_video(video, video_noise, noise_level)
    return video, cover_audio(audio, audio_noise, audio_noise_scale)


def cover_video(video: Tensor, noise: Tensor, noise_level: int) -> Tensor:
    """The video under noise of a level of the table; level 0 adds none."""
    signal = float(zero_snr_table()[noise_level]) if noise_level else 1.0
    return signal * video + (1 - signal**2) ** 0.5 * noise


def cover_audio(audio: Tensor, noise: Tensor, share: float = SR_540P.audio_noise) -> Tensor:
    """The audio as super-resolution hears it, with so much noise in it."""
    return share * noise + (1 - share) * audio
