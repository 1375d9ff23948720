"""From the network to a solver's model: guidance of both streams, and content that stays as it is."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..model.dit import MagiHumanDiT
from ..recipes import Guidance
from .frozen import Frozen, apply_frozen
from .latents import Shapes, pack_latents, unpack_latents


def video_scales(guidance: Guidance, sigma: float, frames: int, device: torch.device | None = None) -> Tensor:
    """The video's guidance scale of each latent frame at a noise level, fp32 [frames, 1, 1]."""
    scale = guidance.video if int(1000 * sigma) > 500 else guidance.video_late
    scales = torch.full((frames, 1, 1), float(scale), device=device)
    scales[: guidance.first_frames].clamp_(max=guidance.first_frames_scale)
    return scales


def later_guidance(guidance: Guidance, start: int) -> Guidance:
    """The guidance of a part of a clip that begins at latent frame `start`, as the part counts its frames."""
    return replace(guidance, first_frames=max(0, guidance.first_frames - start))


class JointDenoiser:
    """Callable as a solver's model: model(x [B, 1, n], sigma) -> x0 [B, 1, n] of the packed streams.

    shapes: from `pack_latents`; text, negative: [1, n, d], each of its own length. No negative: no CFG.
    frozen_video, frozen_audio: (values, mask), mask 1 = generate, 0 = keep; both broadcast to the stream. Frozen
    parts enter every evaluation clean and stand unchanged in every x0.
    forward: keyword arguments handed to the network at each call (run_block, attention).
    """

    def __init__(self, dit: MagiHumanDiT, shapes: Shapes, text: Tensor, negative: Tensor | None = None,
                 guidance: Guidance | None = None, frozen_video: Frozen | None = None,
                 frozen_audio: Frozen | None = None, **forward: Any):
        self.dit, self.shapes, self.text, self.negative = dit, shapes, text, negative
        self.guidance = guidance or Guidance()
        self.frozen_video, self.frozen_audio = frozen_video, frozen_audio
        self.forward = forward

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        s = float(sigma.flatten()[0])
        video, audio = unpack_latents(x, self.shapes)
        video_in = apply_frozen(video, self.frozen_video)
        audio_in = apply_frozen(audio, self.frozen_audio)
        texts = [self.text] if self.negative is None else [self.text, self.negative]
        velocities = self.dit.forward_many([(video_in, audio_in, text) for text in texts], **self.forward)
        v_video, v_audio = velocities[0]
        if self.negative is not None:
            u_video, u_audio = velocities[1]
            v_video = u_video + video_scales(self.guidance, s, video.shape[2], video.device) * (v_video - u_video)
            v_audio = u_audio + self.guidance.audio * (v_audio - u_audio)
        x0_video = apply_frozen(video_in - s * v_video, self.frozen_video)
        x0_audio = apply_frozen(audio_in - s * v_audio, self.frozen_audio)
        return pack_latents(x0_video, x0_audio)[0]
