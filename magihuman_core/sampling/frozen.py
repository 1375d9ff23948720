"""What a clip starts from: an empty one, a reference image, driving audio, or the end of another clip.

All of them are one mechanism: clean latents, and a mask that says what of them is to be made and what is kept. A
reference image is latent frame 0; driving audio is the whole audio; to extend a clip, its last latents come first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..sizes import AUDIO_PER_FRAME, FPS, PIXELS_PER_LATENT, decoded_frames, full_audio, latent_frames

# What is frozen in a stream: (values, mask), mask 1 = generate, 0 = keep; both broadcast to the stream.
Frozen = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class JointLatent:
    """Clean latents of both streams, and what of them is generated (mask 1) or kept (mask 0)."""

    video: Tensor  # [B, C, T, H, W]
    audio: Tensor  # [B, a, A]
    video_mask: Tensor  # [B, 1, T, H, W]
    audio_mask: Tensor  # [B, 1, A]

    @property
    def frozen_video(self) -> Frozen | None:
        """The video as JointDenoiser takes it; None where nothing is kept."""
        return _frozen(self.video, self.video_mask)

    @property
    def frozen_audio(self) -> Frozen | None:
        return _frozen(self.audio, self.audio_mask)


def _frozen(values: Tensor, mask: Tensor) -> Frozen | None:
    return None if bool((mask == 1).all()) else (values, mask)


def apply_frozen(stream: Tensor, frozen: Frozen | None) -> Tensor:
    """The stream with its frozen part put in; where the mask is 0 exactly the given values."""
    if frozen is None:
        return stream
    values, mask = (t.to(stream) for t in frozen)
    return torch.where(mask == 0, values, torch.lerp(values.expand_as(stream), stream, mask.expand_as(stream)))


def empty_latent(width: int, height: int, audio_length: int, channels: tuple[int, int],
                 device: torch.device | str | None = None) -> JointLatent:
    """Zeros, all to be generated. width, height: pixels, multiples of 32; channels: of video and audio latents."""
    size = (latent_frames(audio_length), height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    return all_generated(torch.zeros(1, channels[0], *size, device=device),
                         torch.zeros(1, channels[1], audio_length, device=device))


def all_generated(video: Tensor, audio: Tensor) -> JointLatent:
    """Latents of which nothing is kept."""
    return JointLatent(video, audio, torch.ones_like(video[:, :1]), torch.ones_like(audio[:, :1]))


def keep_audio(latent: JointLatent, audio: Tensor) -> JointLatent:
    """Make audio the clip's own, and the video as long as it: latent frames are cut off, or empty ones follow.

    audio: its latent [1, a, A].
    """
    frames = latent_frames(audio.shape[2])
    audio = audio.to(latent.audio).expand(latent.video.shape[0], -1, -1)
    return JointLatent(_resize_time(latent.video, frames, 0), audio, _resize_time(latent.video_mask, frames, 1),
                       torch.zeros_like(audio[:, :1]))


def keep_start(latent: JointLatent, video: Tensor, audio: Tensor) -> JointLatent:
    """Make the end of another clip the start of this one.

    video: latent [1, C, t, H, W] of as many frames as `overlap_frames` says; audio: latent [1, a, n] of the same time,
    of which as many latents are kept as there are frames.
    """
    frames, count = video.shape[2], min(decoded_frames(video.shape[2]), audio.shape[2])
    new_video, video_mask = latent.video.clone(), latent.video_mask.clone()
    new_video[:, :, :frames], video_mask[:, :, :frames] = video.to(new_video), 0
    new_audio, audio_mask = latent.audio.clone(), latent.audio_mask.clone()
    new_audio[:, :, :count], audio_mask[:, :, :count] = audio[:, :, :count].to(new_audio), 0
    return JointLatent(new_video, new_audio, video_mask, audio_mask)


def _resize_time(stream: Tensor, frames: int, fill: float) -> Tensor:
    """A stream [B, C, T, H, W] cut to so many latent frames, or followed by frames of a value."""
    B, C, T, H, W = stream.shape
    return torch.cat([stream[:, :, :frames], stream.new_full((B, C, max(0, frames - T), H, W), fill)], 2)


def overlap_frames(seconds: float, frames: int) -> int:
    """Frames of a clip that its continuation begins with, in whole latent frames: 1, 5, 9, ...

    seconds: wished for; frames: of the clip. Raises InputError for a clip without a whole frame.
    """
    kept = min(round(seconds * FPS), frames)
    if kept < 1:
        raise InputError("The clip to be extended is shorter than one frame: connect its frames.")
    return decoded_frames(latent_frames(kept))


def continued_length(overlap: int, added: int) -> int:
    """Audio latents of a clip's continuation: `overlap` latent frames of the clip, and `added` frames or a few more."""
    return full_audio(overlap + -(-added // AUDIO_PER_FRAME))
