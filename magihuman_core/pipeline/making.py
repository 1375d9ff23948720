"""What a clip is made around: latents that are kept, before sampling, and what is done with the decoded, after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..errors import CheckpointError, InputError
from ..media.frames import Frames
from ..media.waveform import OUTPUT_RATE, resample_recording
from ..sampling.frozen import JointLatent, empty_latent, keep_audio
from ..sampling.regenerate import keep_still
from ..sizes import FPS, frames_of
from ..weights.dit_keys import network_config
from . import stages
from .parts import Parts
from .request import Request, Size, Waveform

RunStage = Callable[..., Any]  # (name, stage, *arguments): runs a stage of stages.py, which is given the parts first
SAMPLES_PER_FRAME = OUTPUT_RATE // FPS


@dataclass(frozen=True)
class Making:
    """A clip from nothing but a request: pictures at some times, and a recording that drives it, may be kept."""

    request: Request

    @property
    def encoded(self) -> list[str]:
        """The stages that encode what is given, in their order."""
        return [*self.encoded_stills, *(["driving sound"] if self.request.audio is not None else [])]

    @property
    def encoded_stills(self) -> list[str]:
        return ["reference picture"] if self.request.keyframes else []

    @property
    def generates_audio(self) -> bool:
        """Whether any of the clip's sound is made by the network."""
        return self.request.audio is None

    def latents(self, parts: Parts, run: RunStage) -> dict[Size, JointLatent]:
        """What each pass starts from, by its size in pixels."""
        request, channels = self.request, self.channels(parts)
        stills = self.stills(parts, run)
        length, audio = request.audio_length, None
        if request.audio is not None:
            audio = run("driving sound", stages.encode_audio, lengthened(request.audio, length))[:, :, :length]
        latents = {}
        for size in stills:
            latent = empty_latent(*size, length, channels)
            if audio is not None:
                latent = keep_audio(latent, audio.cpu())
            latents[size] = self.with_stills(latent, stills[size])
        return latents

    def finish(self, frames: Frames, waveform: Tensor | None) -> tuple[Frames, Tensor]:
        """Frames and audio of the clip, equal in length, from what was decoded.

        waveform: [2, samples] at 44.1 kHz; None: the clip's audio was not generated.
        """
        if self.request.audio is not None:
            waveform = whole_frames(self.request.audio)
        if waveform is None:
            raise InputError("The clip has no sound: its audio was neither given nor generated.")
        return cut_to_shorter(frames, waveform)

    def whole(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor] | None:
        """The latents of the whole clip, to be edited later without encoding it; None where there are none."""
        return video, audio

    @property
    def facts(self) -> dict[str, Any]:
        """What the clip's metadata say besides those of the request."""
        return {}

    def channels(self, parts: Parts) -> tuple[int, int]:
        """Channels of video and audio latents, as the network has them."""
        config = network_config(parts.open(self.request.first.recipe.role))
        return config.video_channels, config.audio_channels

    def stills(self, parts: Parts, run: RunStage) -> dict[Size, list[Tensor]]:
        """The latents of the keyframes at each size."""
        sizes = [pass_.size for pass_ in self.request.passes]
        if not self.request.keyframes:
            return {size: [] for size in sizes}
        stills: dict[Size, list[Tensor]] = run("reference picture", stages.encode_keyframes, self.request.keyframes,
                                               sizes)
        check_channels(parts, stills[sizes[0]][0], self.channels(parts)[0])
        return stills

    def with_stills(self, latent: JointLatent, stills: list[Tensor]) -> JointLatent:
        for keyframe, still in zip(self.request.keyframes, stills, strict=True):
            latent = keep_still(latent, min(keyframe.index, latent.video.shape[2] - 1), still.cpu())
        return latent


def lengthened(audio: Waveform, frames: int) -> Waveform:
    """A recording that is followed by silence up to the end of so many frames."""
    waveform, rate = audio
    return F.pad(waveform, (0, max(0, -(-frames * rate // FPS) - waveform.shape[1]))), rate


def whole_frames(audio: Waveform) -> Tensor:
    """A recording as it is heard, [2, n] at 44.1 kHz; silence fills its last frame."""
    waveform, rate = audio
    heard = resample_recording(waveform, rate, OUTPUT_RATE)
    return lengthened((heard, OUTPUT_RATE), frames_of(waveform.shape[1], rate))[0]


def cut_to_shorter(frames: Frames, waveform: Tensor) -> tuple[Frames, Tensor]:
    """Frames and audio [2, samples] at 44.1 kHz as long as the shorter of the two. Raises InputError."""
    count = min(len(frames), waveform.shape[1] // SAMPLES_PER_FRAME)
    if count < 1:
        raise InputError("The sound is shorter than one frame. Give a longer one.")
    return frames.part(0, count), waveform[:, : count * SAMPLES_PER_FRAME]


def check_channels(parts: Parts, latent: Tensor, channels: int) -> None:
    """Raise CheckpointError unless a latent from the video VAE is one of the network's kind."""
    if latent.shape[1] != channels:
        raise CheckpointError(f"{parts.models['video_vae']}: encodes to {latent.shape[1]} channels, the network "
                              f"takes {channels}. Use the VAE that belongs to this network.")
