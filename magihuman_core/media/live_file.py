"""Video and audio written as they are made, to a pipe or a file, so that a player can show them at once."""

from __future__ import annotations

from errno import EPIPE
from fractions import Fraction
from types import TracebackType
from typing import Any, BinaryIO

import av
import torch
from torch import Tensor

from ..errors import InputError, reader_is_gone, shown
from ..sizes import FPS
from .mp4 import AudioTrack, add_video, video_frame

FORMATS: dict[str, dict[str, str]] = {
    # Each key frame begins a fragment that is complete by itself.
    "mp4": {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"},
    "matroska": {"live": "1", "flush_packets": "1"},
}
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)  # that AAC takes


def check_aac_rate(rate: int) -> None:
    """Raise InputError for sound that cannot be written as it is."""
    if rate not in RATES:
        raise InputError(f"The sound has {rate} samples per second, expected one of {', '.join(map(str, RATES))}. "
                         "Convert it.")


class _Pipe:
    """Only the writing of a file: what can be sought in is treated as a file that is read back.

    PyAV does not hand every error of a callback on, nor Ctrl-C, so it is kept here, and what follows is dropped.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: BaseException | None = None  # the reader is gone, or the disk is full

    def write(self, data: bytes) -> int:
        rest = memoryview(data if self.error is None else b"")
        try:
            while rest:  # a pipe may take less than it is given
                rest = rest[self.file.write(rest) :]
            self.file.flush()
        except OSError as error:
            self.error = BrokenPipeError(EPIPE, "The reader is gone") if reader_is_gone(error) else error
        except BaseException as error:
            self.error = error
        return len(data)

    def check(self) -> None:
        """Raise the error that writing met."""
        if self.error is not None:
            raise self.error


class LiveFile:
    """H.264 and AAC in fragmented mp4 or Matroska; `with` closes it so that what was written is whole."""

    def __init__(self, file: BinaryIO, width: int, height: int, rate: int, container: str = "mp4") -> None:
        """rate: of the audio, in samples per second. Raises InputError for one that AAC does not take, and for an
        unknown container."""
        check_aac_rate(rate)
        if container not in FORMATS:
            raise InputError(f"container is {shown(container)}, expected one of {', '.join(FORMATS)}.")
        self.pipe = _Pipe(file)
        self.container: Any = av.open(self.pipe, "w", format=container, options=FORMATS[container])
        self.video = add_video(self.container, width, height, Fraction(FPS),
                               {"tune": "zerolatency", "g": str(FPS), "preset": "veryfast"})
        self.audio = AudioTrack(self.container, torch.zeros(2, 0), rate)
        self.count, self.rate = 0, rate

    def write(self, frames: Tensor, waveform: Tensor) -> None:
        """frames uint8 [F, h, w, 3] and the audio [2, F * rate / 25] of their time. Raises OSError."""
        self.audio.append(waveform)
        for frame in frames:
            self.container.mux(self.video.encode(video_frame(frame, self.count, Fraction(FPS))))
            self.count += 1
            self.audio.advance(self.count * self.rate // FPS)
            self.pipe.check()

    def __enter__(self) -> LiveFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.container.mux(self.video.encode(None))
        self.audio.finish()
        self.container.close()
        if error is None:
            self.pipe.check()
