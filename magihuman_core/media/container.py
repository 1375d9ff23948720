"""Opening audio and video of any kind with FFmpeg, and decoding what of them can be decoded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import InputError
from .readable import check_readable

if TYPE_CHECKING:
    import av

# What a playlist or a list of files could name beyond the file itself is not opened. As container_options, which go to
# the demuxer alone: before 17.1 PyAV crashes on `options` where streams are found after the header (mpg, flv, ts).
OPTIONS = {"protocol_whitelist": "none"}
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
    import av

    damaged, packets = 0, container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                break
            frames = packet.decode()
        except av.EOFError:
            break
        except av.FFmpegError:  # of demuxing it ends the packets
            damaged += 1
            continue
        yield from frames
    if damaged:
        log.warning("%s: is damaged in %d places, which are left out.", path, damaged)
