"""VIDEO of ComfyUI as a clip: at 25 frames per second, in one size, with sound as long as the picture."""

import logging
from fractions import Fraction

import comfy.model_management
import numpy as np
import torch
from comfy_api.latest import InputImpl
from torch import Tensor

from ...magihuman_core.errors import InputError
from ...magihuman_core.media.frames import Frames
from ...magihuman_core.media.image import warn_of_cropping
from ...magihuman_core.media.video_file import frame_count, open_video, shown_frames
from ...magihuman_core.media.waveform import OUTPUT_RATE, resample_recording
from ...magihuman_core.recipes import BASE
from ...magihuman_core.sizes import FPS, MAX_SIDE, PIXELS_PER_TOKEN, fit_area, floor_size
from .media import fit_length, rgb, stereo

log = logging.getLogger(__name__)


def fit_video(video, width: int, height: int) -> tuple[Tensor, dict]:
    """(IMAGE [F, h, w, 3], AUDIO) of a VIDEO of any rate, size and length.

    width, height: pixels, floored to multiples of 32. One that is 0 follows from the other by the video's aspect; where
    both are, they are the video's own, or of its aspect where it is larger than what the base model makes. Raises
    InputError for a video that is none, or holds a picture only.
    """
    frames, audio = _from_file(video) or _from_components(video)
    if len(frames) < 2:
        raise InputError("The video has one frame only. Use it as a picture, with MagiHuman Reference Image.")
    own = fit_area(frames.width, frames.height, BASE.area, "The video")
    if width or height:
        width, height = (side and floor_size(side, side)[0] for side in (width, height))
        aspect = frames.width / frames.height
        own = _nearest_side(height * aspect), _nearest_side(width / aspect)
    width, height = floor_size(width or own[0], height or own[1])
    warn_of_cropping((frames.width, frames.height), (width, height))
    images = torch.empty(len(frames), height, width, 3)
    position = 0
    for piece in frames.resized(width, height).pieces():
        comfy.model_management.throw_exception_if_processing_interrupted()
        torch.div(piece, 255, out=images[position : position + len(piece)])
        position += len(piece)
    samples = len(frames) * OUTPUT_RATE // FPS
    if audio is None:
        log.warning("The video has no sound; silence is taken for it.")
        waveform = torch.zeros(2, samples)
    else:
        waveform = fit_length(resample_recording(*audio, OUTPUT_RATE), samples)
    return images, {"waveform": waveform[None], "sample_rate": OUTPUT_RATE}


def _nearest_side(pixels: float) -> int:
    """The multiple of 32 that is nearest, of those that a clip can have."""
    return min(MAX_SIDE, max(PIXELS_PER_TOKEN, round(pixels / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN))


def _from_file(video) -> tuple[Frames, tuple[Tensor, int] | None] | None:
    """The frames and the audio of a VIDEO that is a file, of which only a few frames are decoded at a time."""
    source = video.get_stream_source() if isinstance(video, InputImpl.VideoFromFile) else None
    if not isinstance(source, str) or _is_edited(video, source):
        return None
    file = open_video(source)
    start, seconds = video.get_active_trim_window()
    first = min(round(start * FPS), file.count)
    end = min(file.count, first + round(seconds * FPS)) if seconds else file.count
    return file.frames(file.width, file.height, first, end), file.audio(first, end)


def _is_edited(video, source: str) -> bool:
    """Whether frames differ from those of the file: newer cores crop and resize a VIDEO without writing it anew."""
    pending = getattr(video, "has_pending_frame_edits", None)
    return bool(pending and pending()) or video.get_dimensions() != InputImpl.VideoFromFile(source).get_dimensions()


def _from_components(video) -> tuple[Frames, tuple[Tensor, int] | None]:
    """Those of a VIDEO that was made of images; each of 25 frames per second is the one that is shown at its time."""
    parts = video.get_components()
    images, rate = parts.images, Fraction(parts.frame_rate)
    chosen = shown_frames(np.arange(len(images)) / float(rate), frame_count(float(len(images) / rate)))

    def pieces():
        for number in chosen.tolist():
            yield (rgb(images[number : number + 1]).float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()

    audio = parts.audio
    empty = audio is None or audio["waveform"].shape[-1] == 0
    return Frames(len(chosen), images.shape[1], images.shape[2], pieces), None if empty else stereo(audio)
