"""Clips as mp4 files: checking the place, and writing frame by frame with PyAV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..atomic import check_not_input, check_place, whole_file
from ..errors import InputError, shown
from ..sizes import FPS
from .waveform import OUTPUT_RATE

if TYPE_CHECKING:
    import av


def check_output(path: str | Path, inputs: Iterable[str | Path | None] = (), *, suffix: str = ".mp4",
                 what: str = "clip") -> Path:
    """Make sure, before long work starts, that a file can be written there; its folder is made.

    inputs: files that are read, and must not be written over. suffix: of the file, which holds the clip, or what else
    it is. Raises InputError.
    """
    if not isinstance(path, str | PathLike):
        raise InputError(f"The file of the {what} is {shown(path)}, expected a path.")
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise InputError(f"{path}: the {what} is written as {suffix[1:]}. Give a name that ends in {suffix}.")
    check_not_input(path, inputs)
    check_place(path, what)
    return path


def write_mp4(path: str | Path, frames: Iterable[Tensor], audio: Tensor | None, *, fps: float | Fraction = FPS,
              sample_rate: int = OUTPUT_RATE, metadata: Mapping[str, str] | None = None) -> None:
    """Write an H.264 (yuv420p, BT.709) and AAC mp4.

    frames: uint8 [h, w, 3] one by one, h and w even: a tensor [F, h, w, 3], or an iterator, which is read
    frame by frame and never held. audio: [2, samples] (or [1, samples]) in [-1, 1], cut, or filled with
    silence, to the video's length; None: no audio. The file appears under its name only when it is
    complete: it is written under a temporary name in the same folder, which any error, or Ctrl-C, removes.
    Raises InputError for unusable input and where the disk refuses.
    """
    import av

    path = Path(path)
    fps = Fraction(fps).limit_denominator(1001)
    try:
        with whole_file(path) as file:
            _write(Path(file.name), path, iter(frames), audio, fps, sample_rate, metadata or {})
    except InputError:
        raise
    except ValueError:
        raise InputError(f"{str(path)!r}: is not a possible name of a file. Give another one.") from None
    except (OSError, av.FFmpegError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error  # PyAV wraps some
        raise InputError(f"{path}: cannot be written ({cause.strerror or cause}); nothing is left there. "
                         "Free some space or choose another folder.") from error


def _write(file: Path, path: Path, frames: Iterator[Tensor], audio: Tensor | None, fps: Fraction,
           sample_rate: int, metadata: Mapping[str, str]) -> None:
    import av

    first = next(frames, None)
    if first is None:
        raise InputError(f"{path}: there are no frames to write.")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise InputError(f"{path}: the frames are {width}x{height}; H.264 takes even sizes only.")
    # use_metadata_tags keeps names that mp4 does not know; faststart puts the index first, so that pages play at once.
    # By its name: what a callback in Python raises, Ctrl-C too, is lost in FFmpeg, and a piece of the file with it.
    with av.open(str(file), "w", format="mp4", options={"movflags": "use_metadata_tags+faststart"}) as container:
        container.metadata.update({key: str(value) for key, value in metadata.items()})
        video = add_video(container, width, height, fps)
        track = None if audio is None else AudioTrack(container, audio, sample_rate)
        for count, frame in enumerate(chain([first], frames)):
            if tuple(frame.shape) != (height, width, 3) or frame.dtype != torch.uint8:
                raise InputError(f"{path}: frame {count} is {frame.dtype} {tuple(frame.shape)}, "
                                 f"expected uint8 {(height, width, 3)}.")
            container.mux(video.encode(video_frame(frame, count, fps)))
            if track is not None:
                track.advance(round((count + 1) * sample_rate / fps))
        container.mux(video.encode(None))
        if track is not None:
            track.finish()


def video_frame(frame: Tensor, number: int, fps: Fraction) -> av.VideoFrame:
    """A frame uint8 [h, w, 3] as it is encoded."""
    import av

    image = av.VideoFrame.from_ndarray(frame.cpu().numpy(), format="rgb24")
    # The source needs no name: RGB has no matrix. BT.709 is what players assume of such sizes.
    image = image.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
    image.pts, image.time_base = number, 1 / fps
    return image


def add_video(container: av.container.OutputContainer, width: int, height: int, fps: Fraction,
              options: Mapping[str, str] | None = None):
    """The video stream of a file. options: of the encoder."""
    stream = container.add_stream("libx264", rate=fps, options={"crf": "18", **(options or {})})
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    context = stream.codec_context
    # Code points of ITU-T H.273: 1 is BT.709 in all three; range 1 is the limited one of video.
    context.color_primaries = context.color_trc = context.colorspace = context.color_range = 1
    return stream


class AudioTrack:
    """The audio track, fed as far as the video has come, so that the two lie side by side in the file."""

    def __init__(self, container: av.container.OutputContainer, audio: Tensor, sample_rate: int) -> None:
        if audio.ndim != 2 or audio.shape[0] not in (1, 2):
            raise InputError(f"the audio has shape {tuple(audio.shape)}, expected [2, samples].")
        self.container, self.audio, self.rate, self.position = container, audio, sample_rate, 0
        self.dropped = 0  # samples before those of self.audio
        self.stream = container.add_stream("aac", rate=sample_rate, layout="stereo")
        self.stream.bit_rate = 192_000

    def append(self, audio: Tensor) -> None:
        """More audio [2, samples]; what was encoded before is let go."""
        self.audio = torch.cat([self.audio[:, self.position - self.dropped :], audio], 1)
        self.dropped = self.position

    def advance(self, end: int) -> None:
        """Encode all samples before `end`; silence where there are none."""
        import av

        part = self.audio[:, self.position - self.dropped : end - self.dropped]
        part = part.detach().cpu().float().clamp(-1, 1).expand(2, -1)
        part = torch.nn.functional.pad(part, (0, end - self.position - part.shape[1]))
        frame = av.AudioFrame.from_ndarray(part.contiguous().numpy(), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = self.rate, self.position, Fraction(1, self.rate)
        self.container.mux(self.stream.encode(frame))
        self.position = end

    def finish(self) -> None:
        self.container.mux(self.stream.encode(None))
