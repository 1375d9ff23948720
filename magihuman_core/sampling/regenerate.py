"""Parts of a finished clip made anew, and stills that a clip passes through: masks over clean latents.

All of it is the mechanism of frozen.py: what the mask keeps enters every evaluation clean, and the rest is generated
around it.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, shown
from ..sizes import FPS, PIXELS_PER_LATENT, decoded_frames, latent_of_frame
from .frozen import JointLatent

LEAD = 3  # frames over which a retake fades in and out
STILL_FRAMES = 5  # frames of a still that is encoded for a place other than the first: its second latent is taken


def all_kept(video: Tensor, audio: Tensor) -> JointLatent:
    """The latents [B, C, T, H, W] and [B, a, A] of a clip, of which nothing is generated."""
    return JointLatent(video, audio, torch.zeros_like(video[:, :1]), torch.zeros_like(audio[:, :1]))


def keep_outside(latent: JointLatent, region: Tensor) -> JointLatent:
    """Keep the video outside of a region. region: bool or 0..1 [H, W], True or above 0 where it may be made anew."""
    inside = (region.to(latent.video_mask) > 0).to(latent.video_mask)
    return replace(latent, video_mask=latent.video_mask.minimum(inside))


def open_frames(latent: JointLatent, first: int, last: int, *, video: bool = True, audio: bool = True) -> JointLatent:
    """Generate the latent frames `first` to `last` (inclusive), and the audio of the time they are shown."""
    video_mask, audio_mask = latent.video_mask.clone(), latent.audio_mask.clone()
    if video:
        video_mask[:, :, first : last + 1] = 1
    if audio:
        start, end = shown_frames(first, last)
        if last == latent.video.shape[2] - 1:
            end = audio_mask.shape[2]
        audio_mask[:, :, start:end] = 1
    return replace(latent, video_mask=video_mask, audio_mask=audio_mask)


def keep_still(latent: JointLatent, index: int, still: Tensor) -> JointLatent:
    """Make the clip show a picture at a latent frame. still: its latent [1, C, 1, H, W]."""
    video, mask = latent.video.clone(), latent.video_mask.clone()
    video[:, :, index : index + 1], mask[:, :, index] = still.to(video), 0
    return replace(latent, video=video, video_mask=mask)


def shown_frames(first: int, last: int) -> tuple[int, int]:
    """The frames (and audio latents) from, and up to (exclusive), in which some latent frames are shown."""
    return max(0, decoded_frames(first)), decoded_frames(last + 1)


def seen_share(frames: Tensor, start: int, end: int, count: int) -> Tensor:
    """How much of what was made anew is seen in each of some frames (their numbers), fp32.

    It fades in and out within its own frames, start to end (exclusive), but for the ends of the clip of `count` frames.
    """
    level = ((frames >= start) & (frames < end)).float()
    if start > 0:
        level *= ((frames - start + 1) / LEAD).clamp(0, 1)
    if end < count:
        level *= ((end - frames) / LEAD).clamp(0, 1)
    return level


def latents_between(start: float, end: float) -> tuple[int, int]:
    """The first and last latent frame that show something of the time from start to end, in seconds."""
    first, last = math.floor(start * FPS + 1e-6), math.ceil(end * FPS - 1e-6) - 1
    return latent_of_frame(first), latent_of_frame(max(first, last))


def retake_times(start: float, end: float, count: int) -> tuple[int, int]:
    """The first and last latent frame of a retake from start to end, in seconds, of a clip of `count` frames.

    Raises InputError for a time that is none.
    """
    seconds = count / FPS
    for name, value in (("start", start), ("end", end)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise InputError(f"{name} is {shown(value)}, expected seconds from the clip's start.")
    if start >= seconds:
        raise InputError(f"start is {start:g} s, but the clip ends at {seconds:.2f} s. Choose an earlier time.")
    if start >= end:
        raise InputError(f"start is {start:g} s and end is {end:g} s: the retake must end after it starts.")
    first, last = latents_between(start, min(end, seconds))
    return first, min(last, latent_of_frame(count - 1))


def latent_region(mask: Tensor) -> Tensor:
    """Which latent pixels a mask [height, width] in pixels (0..1) touches by a quarter or more: bool [H, W]."""
    shares = F.avg_pool2d(mask[None, None].float(), PIXELS_PER_LATENT)[0, 0]
    region = shares >= 0.25
    return region if region.any() else shares == shares.max()
