"""Reading videos of any kind: at 25 frames per second, upright, in one size, with audio in step."""

from __future__ import annotations

import json
import logging
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..sizes import FPS, MAX_SECONDS
from .audio_file import load_part
from .container import best_stream, decoded, decoded_from, open_media
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
    has_audio: bool
    prompt: str | None  # where the file says how it was made
    start: int  # of the first frame on the file's own clock
    clock: Fraction  # seconds of that clock's unit
    keys: np.ndarray  # [n, 3] of key frames: number of the frame, its time, and where to seek it, by that clock
    aspect: Fraction  # of the file's own pixels, width to height

    @property
    def count(self) -> int:
        """Frames at 25 per second."""
        return frame_count(self.seconds)

    def frames(self, width: int, height: int, start: int = 0, end: int | None = None) -> Frames:
        """The video at 25 frames per second, cropped in the middle to the aspect of a size in pixels, and resized.

        At other rates each frame is the one that is shown at its time. start, end (exclusive): only these of them;
        decoding begins at the key frame before.
        """
        chosen = shown_frames(self.times, self.count)[start:end]
        ends = np.cumsum(np.bincount(chosen, minlength=len(self.times)))  # of each frame's time
        count = len(chosen)

        def seen(frame: av.VideoFrame) -> Tensor:
            return torch.from_numpy(np.array(crop_and_resize(upright(frame, self.aspect), width, height)))[None]

        def pieces() -> Iterator[Tensor]:
            done, number, last, image = 0, -1, None, torch.empty(0)
            for frame in self._decoded(int(chosen[0])):
                number = self._number(frame, number)
                if number and last is not None and done < ends[number - 1]:  # frames that could not be decoded
                    image = image if len(image) else seen(last)
                    yield image.expand(int(ends[number - 1]) - done, -1, -1, -1)
                    done = int(ends[number - 1])
                last, image = frame, torch.empty(0)
                if done < ends[number]:
                    image = seen(frame)
                    yield image.expand(int(ends[number]) - done, -1, -1, -1)
                    done = int(ends[number])
                if done == count:
                    return
            if last is None:
                raise InputError(f"{self.path}: none of its frames can be decoded. Convert it to mp4 first.")
            image = image if len(image) else seen(last)
            yield image.expand(count - done, -1, -1, -1)  # frames at the end that cannot be decoded

        return Frames(count, height, width, pieces)

    def audio(self, start: int = 0, end: int | None = None) -> tuple[Tensor, int] | None:
        """(fp32 [2, samples], rate) that begins with the first frame, or that of a part; None where there is none.

        start, end (exclusive): frames at 25 per second. The audio may end before them.
        """
        if not self.has_audio:
            return None
        end = self.count if end is None else end
        return load_part(self.path, float(self.start * self.clock) + start / FPS, (end - start) / FPS)

    def _number(self, frame: av.VideoFrame, before: int) -> int:
        """Which of all frames a decoded one is; before: the number of the one before it."""
        if frame.pts is None or frame.time_base is None:
            number = before + 1
        else:
            shown = float(frame.pts * frame.time_base - self.start * self.clock)
            number = int(np.searchsorted(self.times, shown + TOLERANCE / 2, side="right")) - 1
        return min(max(number, before, 0), len(self.times) - 1)

    def _decoded(self, first: int) -> Iterator[av.VideoFrame]:
        """The file's own frames, at the latest from number `first` on."""
        at = int(np.searchsorted(self.keys[:, 0], first, side="right")) - 1
        number, time, place = self.keys[at] if at >= 0 else (0, 0, 0)
        return decoded_from(self.path, "video", REMEDY, int(place) if number else None, int(time))


def frame_count(seconds: float) -> int:
    """Frames at 25 per second of a video that lasts so long."""
    return max(1, int((seconds + TOLERANCE) * FPS))


def shown_frames(times: np.ndarray, count: int) -> np.ndarray:
    """Which of the frames shown from these times (seconds, in order) on each of `count` at 25 per second is."""
    return np.maximum(np.searchsorted(times, np.arange(count) / FPS + TOLERANCE, side="right") - 1, 0)


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
        shown, keys = [], []
        for packet in container.demux(stream):  # none of which is kept: all of them are as large as the file
            if packet.pts is None or packet.is_discard:  # of what an edit list cuts away nothing is shown
                continue
            shown.append((packet.pts, packet.duration or 0))
            if packet.is_keyframe:
                keys.append((packet.pts, packet.pts if packet.dts is None else min(packet.pts, packet.dts)))
        shown.sort()
        clock = stream.time_base or Fraction(1, FPS)
        rate = stream.average_rate or FPS
        has_audio = best_stream(container, "audio") is not None
    if not shown:  # a file without times
        raise InputError(f"{path}: does not say when its frames are shown. Convert it to mp4 first.")
    with open_media(path, "video", REMEDY) as container:
        frame = next(decoded(container, best_stream(container, "video"), path), None)
        if frame is None:
            raise InputError(f"{path}: holds no frame that can be decoded. Give another video.")
        if frame.interlaced_frame:
            log.warning("%s: is interlaced: what moves will have the edges of a comb. Deinterlace it first.", path)
        first = upright(frame, aspect)
    times = np.array([float((pts - shown[0][0]) * clock) for pts, _ in shown])
    if times[-1] > MAX_SECONDS:
        raise InputError(f"{path}: says that it lasts {times[-1]:.0f} s, more than can be read. Cut it first.")
    last = float(shown[-1][1] * clock) or (float(np.median(np.diff(times))) if len(times) > 1 else float(1 / rate))
    stamps = [pts for pts, _ in shown]
    places = np.array([(bisect_left(stamps, pts), pts, place) for pts, place in sorted(keys)], np.int64).reshape(-1, 3)
    return VideoFile(path, *first.size, times, float(times[-1]) + last, has_audio, prompt, shown[0][0], clock, places,
                     aspect)


def _prompt(facts: str | None) -> str | None:
    """The prompt that a clip of ours carries."""
    try:
        prompt = json.loads(facts or "null")["prompt"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return prompt if isinstance(prompt, str) else None
