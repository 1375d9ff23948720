"""`magihuman live`: a face for a voice that is still being spoken, from a pipe to a pipe."""

import argparse
import logging
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import BinaryIO, Literal

from ..errors import InputError
from .options import add_models, add_prompt, inputs_of, make_pipeline, read_prompt

CHUNK = 0.2  # seconds of audio that are handed on at once
EARLY = 0.5  # seconds that are waited for the first sound before models are loaded, which need not wait for it
PACKED = (".mp3", ".aac", ".m4a", ".mp4", ".flac", ".ogg", ".opus", ".webm", ".mkv")
MAGIC = (b"ID3", b"fLaC", b"OggS", b"RF64", b"\x1aE\xdf\xa3")  # what such files begin with, and WAVs of over 4 GB
UNPACK = ("is neither 16-bit PCM nor a WAV, which a live clip takes. Convert it, or make a clip of it with magihuman "
          "generate --audio.")
NO_SOUND = "No sound came. Send 16-bit PCM or a WAV."
log = logging.getLogger(__name__)
STDIN, STDOUT = 0, 1  # file descriptors
WAITING = 50  # chunks that may wait: then the sender has to


def add_live(commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "live", parents=[common], help="give a face to a voice while it is spoken",
        description="Read a voice as it is spoken and write a video that players take as it comes.")
    parser.set_defaults(run=live)
    add_prompt(parser, required=True, script=False)
    parser.add_argument("--image", metavar="FILE", help="picture of the person: the first frame")
    parser.add_argument("--audio", default="-", metavar="FILE",
                        help="16-bit PCM, or a WAV that may still grow; - is standard input (default)")
    parser.add_argument("--rate", type=int, default=16000, metavar="N",
                        help="samples per second of PCM (default %(default)s); a WAV says its own")
    parser.add_argument("--channels", type=int, choices=(1, 2), default=1, help="of PCM (default %(default)s)")
    parser.add_argument("--fill-silence", action="store_true",
                        help="where no sound comes for a while, go on with silence instead of waiting for it")
    parser.add_argument("--out", default="-", metavar="FILE",
                        help="where the video goes; - is standard output (default)")
    parser.add_argument("--container", choices=("mp4", "matroska"), default="mp4",
                        help="fragmented mp4, or Matroska (default %(default)s)")
    parser.add_argument("--width", type=int, metavar="N", help="pixels (default the model's own)")
    parser.add_argument("--height", type=int, metavar="N", help="pixels (default the model's own)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed gives another clip")
    parser.add_argument("--mode", choices=("distilled", "base"), help="which network (default distilled)")
    parser.add_argument("--steps", type=int, metavar="N", help="default: the network's own")
    parser.add_argument("--window", type=float, metavar="S", help="seconds made at once (default the network's own)")
    parser.add_argument("--overlap", type=float, metavar="S", help="seconds that windows share (default 0.48)")
    add_models(parser)


def live(arguments: argparse.Namespace) -> int:
    """Make the video until the sound ends, or Ctrl-C."""
    from ..atomic import check_not_input, check_place
    from ..media.live_file import LiveFile

    check_not_input(arguments.out, inputs_of(arguments))
    place = Path(arguments.out)
    with suppress(OSError):  # one of the two is not there
        if arguments.audio == "-" and os.path.samestat(os.fstat(STDIN), place.stat()):
            raise InputError(f"{place}: is the source itself, which comes through standard input. Give another name.")
    if arguments.out != "-" and (place.is_file() or place.is_dir() or not place.exists()):  # no pipe or device
        check_place(place, "video")
    if arguments.out == "-" and os.isatty(STDOUT):
        raise InputError("The video would be written into this terminal. Give a file with --out, or send it on to a "
                         "player, with |.")
    if arguments.audio != "-" and Path(arguments.audio).suffix.lower() in PACKED:
        raise InputError(f"{arguments.audio}: {UNPACK}")
    prompt = read_prompt(arguments)
    names = ("image", "width", "height", "seed", "mode", "steps", "window", "overlap")
    options = {name: getattr(arguments, name) for name in names}
    with _opened(arguments.audio, "rb", STDIN) as source:
        chunks = Chunks(source, arguments.rate, arguments.channels, arguments.fill_silence)
        if chunks.known.wait(EARLY):
            chunks.check()  # where the sound is there already, before models are loaded
        stream = make_pipeline(arguments).open_stream(prompt=prompt, **options)
        log.info("The models are loaded: sound can come.")
        windows = stream.windows(chunks, chunks.rate)
        first = next(windows, None)
        if first is None:
            raise InputError(NO_SOUND)
        frames, _ = first
        with (_opened(arguments.out, "wb", STDOUT) as target,
              LiveFile(target, frames.shape[2], frames.shape[1], chunks.rate, arguments.container) as file):
            try:
                file.write(*first)
                for window in windows:
                    file.write(*window)
            except KeyboardInterrupt:  # what was said so far is a whole video
                print("\nmagihuman: stopped.", file=sys.stderr)
            finally:
                chunks.stop()
    return 0


def _opened(name: str, mode: Literal["rb", "wb"], standard: int) -> FileIO:
    """A file by its name, or for "-" the one of a number, which stays open when this is closed.

    Without a buffer: what has come is read at once, and a thread that waits for more holds no lock. Raises InputError.
    """
    try:
        if name == "-":
            return FileIO(standard, mode, closefd=False)
        return FileIO(name, mode)
    except OSError as error:
        raise InputError(f"{name}: cannot be opened ({error.strerror or error}). Check the name.") from None


class Chunks:
    """Sound read by a thread of its own, so that some of it can wait while a window is made; int16 [channels, n]."""

    def __init__(self, file: BinaryIO, rate: int, channels: int, fill: bool) -> None:
        self.file, self.channels, self.fill = file, channels, fill
        self._rate = rate
        self.known = Event()  # set once the sound has begun, and its rate is known
        self.queue: Queue[bytes | None] = Queue(WAITING)
        self.error: Exception | None = None  # of the thread
        self.stopped = Event()
        self.left: int | None = None  # bytes of sound to come, where others follow them
        Thread(target=self._read, daemon=True).start()

    @property
    def rate(self) -> int:
        """Samples per second, as soon as the sound begins. Raises InputError where it is none."""
        while not self.known.wait(CHUNK):  # with an end, so that Ctrl-C is heard on Windows too
            pass
        self.check()
        return self._rate

    def check(self) -> None:
        """Raise what the thread met."""
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        self.stopped.set()

    def __iter__(self) -> Iterator:
        import torch

        while True:
            try:
                data = self.queue.get(timeout=CHUNK if self.fill else None)
            except Empty:
                yield torch.zeros(self.channels, round(CHUNK * self.rate))
                continue
            if data is None:
                self.check()
                return
            yield torch.frombuffer(bytearray(data), dtype=torch.int16).view(-1, self.channels).T

    def _header(self) -> bytes:
        """Read a WAV's header, where there is one; what was read of PCM otherwise. Raises InputError."""
        head = _upto(self.file, 12)
        if not head:
            raise InputError(NO_SOUND)
        if head.startswith(MAGIC) or head[4:8] == b"ftyp":
            raise InputError(f"The sound {UNPACK}")
        if not (head[:4] == b"RIFF" and head[8:12] == b"WAVE"):
            return head
        whole, position = 8 + struct.unpack("<I", head[4:8])[0], 12
        while True:
            name, length = struct.unpack("<4sI", _exactly(self.file, 8))
            position += 8 + length + length % 2
            if name == b"data":
                # Its length is not known while it grows. But of a finished file titles may follow the sound.
                self.left = length if length and position < whole else None
                return b""
            if name != b"fmt ":  # titles and the like, of any length
                _skip(self.file, length + length % 2)
                continue
            if not 16 <= length <= 1000:
                raise InputError(f"The WAV's format has {length} bytes, expected 16 or some more. Convert it.")
            content = _exactly(self.file, length + length % 2)
            kind, self.channels, self._rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
            if kind not in (1, 0xFFFE) or bits != 16:
                raise InputError(f"The WAV has {bits} bits a sample, expected 16-bit PCM. Convert it.")
            if not 1 <= self.channels <= 64:
                raise InputError(f"The WAV has {self.channels} channels, expected 1 or 2. Convert it.")

    def _read(self) -> None:
        from ..media.live_file import check_aac_rate

        try:
            rest = self._header()
            check_aac_rate(self._rate)
            self.known.set()
            self._read_all(rest)
        except Exception as error:  # said where the chunks are taken
            self.error = error
        finally:
            self.known.set()
            self._put(None)

    def _read_all(self, waiting: bytes) -> None:
        size = 2 * self.channels
        wanted = round(CHUNK * self._rate) * size
        while not self.stopped.is_set():
            data = self.file.read(wanted if self.left is None else min(wanted, self.left))  # without waiting for all
            if self.left is not None:
                self.left -= len(data)
            waiting += data
            whole = len(waiting) // size * size
            if whole:
                self._put(waiting[:whole])
                waiting = waiting[whole:]
            if not data:
                break

    def _put(self, data: bytes | None) -> None:
        while not self.stopped.is_set():
            try:
                return self.queue.put(data, timeout=CHUNK)
            except Full:
                continue
        return None


def _upto(file: BinaryIO, count: int) -> bytes:
    """So many bytes, or fewer at the end."""
    data = b""
    while len(data) < count and (more := file.read(count - len(data))):
        data += more
    return data


def _skip(file: BinaryIO, count: int) -> None:
    """Read so many bytes and forget them."""
    while count:
        count -= len(_exactly(file, min(count, 1 << 16)))


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = _upto(file, count)
    if len(data) < count:
        raise InputError("The WAV ends within its header. Send a whole one.")
    return data
