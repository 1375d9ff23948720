"""From the network to a solver's model: guidance of both streams, and content that is held fixed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.sequence import pack_latents, unpack_latents

LATE = 500  # the video's guidance drops once the integer timestep, trunc(1000 sigma), is no longer above this

# What is frozen in a stream: (values, mask), mask 1 = generate, 0 = keep; both broadcast to the stream.
Frozen = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Guidance:
    """How far to go from the unconditional to the conditional velocity, for each stream (SPEC 3, 4).

    video until the timestep reaches 500, video_late from there; audio throughout. Latent frames before
    `first_frames` get at most `first_frames_scale`: super-resolution with CFG is
    Guidance(3.5, 3.5, first_frames=13).
    """

    video: float = 5.0
    video_late: float = 2.0
    audio: float = 5.0
    first_frames: int = 0
    first_frames_scale: float = 2.0

    def scales(self, sigma: float, frames: int, device=None) -> tuple[Tensor, float]:
        """(video scale [frames, 1, 1], audio scale) at this noise level."""
        scale = self.video if int(1000 * sigma) > LATE else self.video_late
        video = torch.full((frames, 1, 1), float(scale), device=device)
        video[: self.first_frames].clamp_(max=self.first_frames_scale)
        return video, self.audio


def hold(stream: Tensor, frozen: Frozen | None) -> Tensor:
    """The stream with its frozen part put in; where the mask is 0 exactly the given values."""
    if frozen is None:
        return stream
    values, mask = (t.to(stream) for t in frozen)
    return torch.where(mask == 0, values, torch.lerp(values.expand_as(stream), stream, mask.expand_as(stream)))


class JointDenoiser:
    """Callable as a solver's model: model(x [B, 1, n], sigma) -> x0 [B, 1, n] of the packed streams.

    dit: MagiHumanDiT; shapes: from `pack_latents`; text, negative: [1, n, d], each of its own length.
    No negative: no CFG. Frozen parts enter every evaluation clean and stand unchanged in every x0.
    forward: keyword arguments handed to the network at each call (run_block, attention).
    """

    def __init__(
        self,
        dit,
        shapes,
        text: Tensor,
        negative: Tensor | None = None,
        guidance: Guidance | None = None,
        frozen_video: Frozen | None = None,
        frozen_audio: Frozen | None = None,
        **forward,
    ):
        self.dit, self.shapes, self.text, self.negative = dit, shapes, text, negative
        self.guidance = guidance or Guidance()
        self.frozen_video, self.frozen_audio = frozen_video, frozen_audio
        self.forward = forward

    def __call__(self, x: Tensor, sigma: Tensor, **_) -> Tensor:
        s = float(sigma.flatten()[0])
        video, audio = unpack_latents(x, self.shapes)
        video_in, audio_in = hold(video, self.frozen_video), hold(audio, self.frozen_audio)
        texts = [self.text] if self.negative is None else [self.text, self.negative]
        velocities = self.dit.forward_many([(video_in, audio_in, text) for text in texts], **self.forward)
        v_video, v_audio = velocities[0]
        if self.negative is not None:
            video_scale, audio_scale = self.guidance.scales(s, video.shape[2], video.device)
            v_video = velocities[1][0] + video_scale * (v_video - velocities[1][0])
            v_audio = velocities[1][1] + audio_scale * (v_audio - velocities[1][1])
        x0_video = hold(video_in - s * v_video, self.frozen_video)
        x0_audio = hold(audio_in - s * v_audio, self.frozen_audio)
        return pack_latents(x0_video, x0_audio)[0]
