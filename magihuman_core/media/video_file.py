"""Reading videos of any kind: at 25 frames per second, upright, in one size, with audio in step."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..sizes import FPS, MAX_SECONDS
from .audio_file import load_audio
from .container import best_stream, decoded, open_media
from .frames import Frames
from .image import MAX_PIXELS, crop_and_resize
from .upright import pixel_aspect, seen_width, upright

if TYPE_CHECKING:
    import av

TOLERANCE = 0.002  # seconds that a frame may come late: containers round their clocks
REMEDY = "Give an mp4, mov or webm file."
HDR = (16, 18)  # ITU-T H.273: transfer by PQ and by HLG

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoFile:
    """A video, of which only the times of its frames were read."""

    path: Path
    width: int  # pixels, as it is to be seen: upright, and with square pixels
    height: int
    times: np.ndarray  # seconds at which the frames are shown, from 0, in order
    seconds: float
    audio_start: float | None  # seconds by which the audio begins after the video; None: there is no audio
    prompt: str | None  # where the file says how it was made
    start: float = 0.0  # seconds of the first frame on the file's own clock
    aspect: Fraction = Fraction(1)  # of the file's own pixels, width to height

    @property
    def count(self) -> int:
        """Frames at 25 per second."""
        return max(1, int((self.seconds + TOLERANCE) * FPS))

    def frames(self, width: int, height: int) -> Frames:
        """The video at 25 frames per second, cropped in the middle to the aspect of a size in pixels, and resized.

        At other rates each frame is the one that is shown at its time.
        """
        chosen = np.searchsorted(self.times, np.arange(self.count) / FPS + TOLERANCE, side="right") - 1
        ends = np.cumsum(np.bincount(np.maximum(chosen, 0), minlength=len(self.times)))  # of each frame's time

        def pieces() -> Iterator[Tensor]:
            done, number, last = 0, -1, torch.empty(0)
            for frame in self._decoded():
                number = self._number(frame, number)
                if number and len(last) and done < ends[number - 1]:  # frames that could not be decoded
                    yield last.expand(int(ends[number - 1]) - done, -1, -1, -1)
                    done = int(ends[number - 1])
                if done < ends[number]:
                    last = torch.from_numpy(np.array(crop_and_resize(upright(frame, self.aspect), width, height)))[None]
                    yield last.expand(int(ends[number]) - done, -1, -1, -1)
                    done = int(ends[number])
            if done == 0:
                raise InputError(f"{self.path}: none of its frames can be decoded. Convert it to mp4 first.")
            if done < self.count:  # frames at the end that cannot be decoded
                yield last.expand(self.count - done, -1, -1, -1)

        return Frames(self.count, height, width, pieces)

    def audio(self) -> tuple[Tensor, int] | None:
        """(fp32 [2, samples], rate) that begins with the first frame; None where there is none."""
        if self.audio_start is None:
            return None
        waveform, rate = load_audio(self.path)
        late = round(self.audio_start * rate)
        return F.pad(waveform, (late, 0)), rate

    def _number(self, frame: av.VideoFrame, before: int) -> int:
        """Which of all frames a decoded one is; before: the number of the one before it."""
        if frame.pts is None or frame.time_base is None:
            number = before + 1
        else:
            shown = float(frame.pts * frame.time_base) - self.start
            number = int(np.searchsorted(self.times, shown + TOLERANCE / 2, side="right")) - 1
        return min(max(number, before, 0), len(self.times) - 1)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        with open_media(self.path, "video", REMEDY) as container:
            yield from decoded(container, best_stream(container, "video"), self.path)


def open_video(path: str | Path) -> VideoFile:
    """What a video is, from its packets; nothing is decoded but one frame. Raises InputError."""
    path = Path(path)
    with open_media(path, "video", REMEDY) as container:
        stream = best_stream(container, "video")
        if stream is None:
            raise InputError(f"{path}: has no picture that can be decoded. Give a video, such as an mp4 file.")
        context, aspect = stream.codec_context, pixel_aspect(stream)
        width = max(context.width, seen_width(context.width, aspect))
        if width * context.height > MAX_PIXELS:
            raise InputError(f"{path}: is {width}x{context.height} pixels, more than can be read. Give a smaller "
                             "video.")
        if context.color_trc in HDR:
            log.warning("%s: is an HDR video, whose colors will look pale. Convert it to SDR first.", path)
        prompt = _prompt(container.metadata.get("magihuman"))
        # No packet is kept: all of them are as large as the file. Of what an edit list cuts away nothing is shown.
        shown = sorted((packet.pts, packet.duration or 0) for packet in container.demux(stream)
                       if packet.pts is not None and not packet.is_discard)
        clock = stream.time_base or Fraction(1, FPS)
        rate = stream.average_rate or FPS
        audio = best_stream(container, "audio")
        audio_start = None if audio is None else _start(audio)
        video_start = _start(stream)
    if not shown:  # a file without times
        raise InputError(f"{path}: does not say when its frames are shown. Convert it to mp4 first.")
    with open_media(path, "video", REMEDY) as container:
        frame = next(decoded(container, best_stream(container, "video"), path), None)
        if frame is None:
            raise InputError(f"{path}: holds no frame that can be decoded. Give another video.")
        first = upright(frame, aspect)
    times = np.array([float((pts - shown[0][0]) * clock) for pts, _ in shown])
    if times[-1] > MAX_SECONDS:
        raise InputError(f"{path}: says that it lasts {times[-1]:.0f} s, more than can be read. Cut it first.")
    last = float(shown[-1][1] * clock) or (float(np.median(np.diff(times))) if len(times) > 1 else float(1 / rate))
    return VideoFile(path, *first.size, times, float(times[-1]) + last,
                     None if audio_start is None else audio_start - video_start, prompt, float(shown[0][0] * clock), aspect)


def _start(stream) -> float:
    return 0.0 if stream.start_time is None else float(stream.start_time * stream.time_base)


def _prompt(facts: str | None) -> str | None:
    """The prompt that a clip of ours carries."""
    try:
        prompt = json.loads(facts or "null")["prompt"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return prompt if isinstance(prompt, str) else None
