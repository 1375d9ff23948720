"""Opening audio and video of any kind with FFmpeg, and decoding what of them can be decoded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import InputError
from .readable import check_readable

if TYPE_CHECKING:
    import av

# What a playlist or a list of files could name beyond the file itself is not opened. As container_options, which go to
# the demuxer alone: before 17.1 PyAV crashes on `options` where streams are found after the header (mpg, flv, ts).
OPTIONS = {"protocol_whitelist": "none"}
BACK = 10  # seconds
OLDEST = 15  # PyAV's version; older ones crash on playlists
DEFAULT, COVER = 0x1, 0x400  # FFmpeg's AV_DISPOSITION_DEFAULT and AV_DISPOSITION_ATTACHED_PIC

log = logging.getLogger(__name__)


class _File:
    """A file for FFmpeg, which is not told its name: that may be no text, or look like an address."""

    def __init__(self, file: BinaryIO, suffix: str) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell
        self.name = "file" + (suffix if suffix.isascii() and suffix[1:].isalnum() else "")


@contextmanager
def open_media(path: Path, what: str, remedy: str, **options: str) -> Iterator[av.container.InputContainer]:
    """A file as FFmpeg reads it; what cannot be read, also in the block, is an InputError.

    what: "audio", "video" or "image"; remedy: a sentence; options: of FFmpeg's demuxers. Texts in the
    file's metadata may be in any encoding.
    """
    import av

    check_readable(path, what)
    if int(av.__version__.split(".")[0]) < OLDEST:
        raise InputError(f"{path}: is not opened with PyAV {av.__version__}, expected {OLDEST} or newer. Update it: "
                         "python -m pip install --upgrade av")
    try:
        with path.open("rb") as file, av.open(_File(file, path.suffix), metadata_errors="replace",
                                              container_options={**OPTIONS, **options}) as container:
            yield container
    except InputError:
        raise
    except (av.FFmpegError, OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        named = {"audio": "sound", "video": "a video", "image": "an image"}[what]
        raise InputError(f"{path}: cannot be read as {named} ({reason}). {remedy}") from None


def best_stream(container: av.container.InputContainer, kind: str) -> Any:
    """The stream of a kind, "audio" or "video", that players choose; None where there is none that can be decoded.

    The one that is marked as default; no cover of a recording, and no thumbnail.
    """
    streams = [stream for stream in getattr(container.streams, kind)
               if stream.codec_context is not None and not _disposition(stream) & COVER]
    return next((stream for stream in streams if _disposition(stream) & DEFAULT), streams[0] if streams else None)


def _disposition(stream: Any) -> int:
    return stream.disposition.value  # of an IntFlag, before PyAV 17.1 of a Flag


def decoded(container: av.container.InputContainer, stream: Any, path: Path) -> Iterator[Any]:
    """The frames of a stream. Damaged packets are passed over, as players do, and said."""
    damage: list[int | None] = []
    return _said(_frames(container, stream, damage), damage, path)


def decoded_from(path: Path, kind: str, remedy: str, place: int | None, first: int) -> Iterator[Any]:
    """The frames of the stream that best_stream chooses, from the one at `first` on; all frames where no seek finds it.

    place: where to seek to; None: nowhere. Both in the stream's time base. Of video, `first` is that of a key frame;
    what is decoded before may lack what it is made of.
    """
    import av

    for back in (0, BACK) if place is not None else ():  # some containers are searched by guess, and farther back found
        with open_media(path, kind, remedy) as container:
            stream = best_stream(container, kind)
            damage: list[int | None] = []
            time = place * stream.time_base - back
            with suppress(av.FFmpegError):
                if kind == "audio":  # by what the index is of, which is the video
                    container.seek(int(time * 1_000_000))
                else:
                    container.seek(int(time / stream.time_base), stream=stream)
            frames = _frames(container, stream, damage, first)
            begin = next(frames, None)
            if begin is None or begin.pts is None or begin.pts > first:
                continue
            found = next((frame for frame in chain([begin], frames) if frame.pts is None or frame.pts >= first), None)
            if found is not None and (kind == "audio" or found.pts == first):  # else its times are guesses, too
                yield from _said(chain([found], frames), damage, path)
                return
    with open_media(path, kind, remedy) as container:
        yield from decoded(container, best_stream(container, kind), path)


def _frames(container: av.container.InputContainer, stream: Any, damage: list[int | None],
            since: int | None = None) -> Iterator[Any]:
    """The frames of a stream; the times of damaged packets, from `since` on, are put into `damage`."""
    import av

    packets = container.demux(stream)
    while True:
        packet = None
        try:
            packet = next(packets, None)
            if packet is None:
                return
            frames = packet.decode()
        except av.EOFError:
            return
        except av.FFmpegError:  # of demuxing it ends the packets
            time = None if packet is None else packet.pts
            if time is None or since is None or time >= since:
                damage.append(time)
            continue
        yield from frames


def _said(frames: Iterator[Any], damage: list[int | None], path: Path) -> Iterator[Any]:
    try:
        yield from frames
    finally:  # also where no more of them are wanted
        if damage:
            log.warning("%s: is damaged in %d places, which are left out.", path, len(damage))
