"""A finished clip as a source: a video file of any kind, or a clip that was made before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..media.frames import Frames
from ..media.video_file import open_video
from ..media.waveform import OUTPUT_RATE, resample_recording
from ..sizes import FPS
from .clip import Clip
from .request import Size

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A clip at 25 frames per second, whose audio begins and ends with its frames."""

    name: str
    size: Size  # width, height in pixels
    count: int  # frames
    frames: Callable[..., Frames]  # (width, height, start=0, end=None): in that size, of these frames alone
    waveform: Tensor  # [2, samples] at 44.1 kHz; silence where the clip has no audio
    prompt: str | None
    latents: tuple[Tensor, Tensor] | None = None  # normalized; the last frame is of the last of them

    def encoded(self, sizes: Iterable[Size]) -> list[str]:
        """The stage that encodes its picture at these sizes, where it does not have the latents of all."""
        return [] if self.latents is not None and set(sizes) == {self.size} else ["picture of the clip"]


def open_source(clip: str | Path | Clip) -> Source:
    """Read what a clip is, and its audio. Raises InputError."""
    if isinstance(clip, Clip):
        video = clip.video
        waveform = resample_recording(clip.audio, clip.sample_rate, OUTPUT_RATE)
        prompt = clip.metadata.get("prompt")

        def frames(width: int, height: int, start: int = 0, end: int | None = None) -> Frames:
            return video.part(start, video.count if end is None else end).resized(width, height)

        return _source("clip", (video.width, video.height), video.count, frames, waveform, prompt, clip.latents)
    if not isinstance(clip, str | Path):
        raise InputError(f"clip is {type(clip).__name__}, expected the path of a video or a Clip.")
    file = open_video(clip)
    audio = file.audio()
    heard = None if audio is None else resample_recording(*audio, OUTPUT_RATE)
    return _source(str(clip), (file.width, file.height), file.count, file.frames, heard, file.prompt, None)


def _source(name: str, size: Size, count: int, frames: Callable[..., Frames], waveform: Tensor | None,
            prompt: str | None, latents: tuple[Tensor, Tensor] | None) -> Source:
    if count < 2:
        raise InputError(f"{name}: has one frame only. Use it as a picture, with --image.")
    samples = count * OUTPUT_RATE // FPS
    if waveform is None:
        log.warning("%s: has no sound; silence is taken for it.", name)
        waveform = torch.zeros(2, samples)
    return Source(name, size, count, frames, F.pad(waveform, (0, samples - waveform.shape[1])), prompt, latents)
