"""Reading audio from files: WAV and FLAC by soundfile where it is installed, all else by PyAV."""

from __future__ import annotations

import logging
import sys
import wave
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..atomic import whole_file
from ..errors import InputError
from .container import best_stream, decoded_from, open_media
from .readable import check_readable
from .waveform import MAX_CHANNELS, MAX_RECORDING, as_audio, check_rate, to_stereo

if TYPE_CHECKING:
    import av

# What soundfile gives the same samples of as PyAV, to the bit.
FORMATS = ("WAV", "WAVEX", "FLAC")
SUBTYPES = ("PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")
BLOCK = 1 << 20  # samples read at a time, of all channels
REMEDY = "Give a WAV or MP3 file."
PREROLL = 1.0  # seconds that are decoded before a part, so that no decoder lacks what came before
GAP = 0.04  # seconds: by so much times may be inexact
LONGEST_GAP = 60.0  # in a file that does not say its length

log = logging.getLogger(__name__)


def load_audio(path: str | Path, seconds: float | None = None) -> tuple[Tensor, int]:
    """Decode the audio of a file -> (fp32 [2, samples] in [-1, 1], its own sample rate).

    Any audio or video that FFmpeg reads. Channels become two as in waveform.to_stereo, levels are brought to the range
    as in waveform.as_audio. seconds: stop after so much. Raises InputError.
    """
    path = Path(path)
    check_readable(path, "audio")
    found = _read(path, seconds) or _decode(path, None, seconds)
    if found is None:
        raise InputError(f"{path}: holds no sound at all. Give a recording that is not empty.")
    return as_audio(*found, f"{path}:")


def load_part(path: Path, start: float, seconds: float) -> tuple[Tensor, int] | None:
    """Decode a part of a video's audio, as load_audio does; None where there is none at all, in a track that is empty.

    start: seconds on the file's own clock. The part begins there and lasts so long, with silence where there is no
    sound yet or any more. Raises InputError.
    """
    found = _decode(path, start, seconds)
    if found is None:
        return None
    audio, rate = found
    return as_audio(F.pad(audio, (0, round(seconds * rate) - audio.shape[1])), rate, f"{path}:")


def write_wav(path: str | Path, waveform: Tensor, rate: int) -> None:
    """Write a waveform [channels, samples] in [-1, 1] as 16-bit WAV, whole or not at all. Raises InputError."""
    samples = (waveform.T.clamp(-1, 1) * 32767).round().to(torch.int16).contiguous().numpy().astype("<i2")
    try:
        with whole_file(Path(path)) as file, wave.open(file, "wb") as wav:
            wav.setnchannels(waveform.shape[0])
            wav.setsampwidth(2)
            wav.setframerate(rate)
            wav.writeframes(samples.tobytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); nothing is left there. "
                         "Free some space or choose another folder.") from error


def _read(path: Path, seconds: float | None) -> tuple[Tensor, int] | None:
    """(audio, rate) of an intact WAV or FLAC file; None for any other, and without soundfile."""
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: without its library
        return None
    try:
        with soundfile.SoundFile(path) as file:
            if not file.frames or file.format not in FORMATS or file.subtype not in SUBTYPES:
                return None
            if file.channels > 2 and file.format != "WAV":  # the file may name them, which soundfile does not tell
                return None
            check_rate(file.samplerate, f"{path}:")
            _check_size(file.channels, file.frames, file.samplerate, seconds, path)
            count = file.frames if seconds is None else min(file.frames, round(seconds * file.samplerate))
            blocks = file.blocks(BLOCK // file.channels, frames=count, dtype="float32", always_2d=True)
            parts = [to_stereo(torch.from_numpy(block.T)) for block in blocks]
    except (soundfile.SoundFileError, OSError, UnicodeError):
        return None  # PyAV may read more of it, or says what is wrong
    audio = torch.cat(parts, 1) if parts else torch.empty(2, 0)
    return (audio, file.samplerate) if audio.shape[1] == count else None


def _decode(path: Path, start: float | None, seconds: float | None) -> tuple[Tensor, int] | None:
    """The same of whatever FFmpeg reads, from a time on its clock on (None: its beginning); None without sound.

    Raises InputError.
    """
    with open_media(path, "audio", REMEDY) as container:
        stream = best_stream(container, "audio")
        if stream is None:
            known = container.streams.audio
            raise InputError(f"{path}: " + ("its audio is in a format that is not known here. Convert it to WAV or MP3."
                                            if known else
                                            "has no sound. Give a recording, such as a WAV, MP3 or M4A file."))
        rate, clock = stream.codec_context.sample_rate, stream.time_base
        check_rate(rate, f"{path}:")
        length = None if container.duration is None else container.duration / 1_000_000
        _check_size(stream.codec_context.channels, int((length or 0) * rate), rate, seconds, path)
        stream_start = None if stream.start_time is None else float(stream.start_time * clock)
    place = None
    if start is not None and start - (stream_start or 0) > 2 * PREROLL:
        place = int((start - PREROLL) / clock)
    frames = decoded_from(path, "audio", REMEDY, place, place or 0)
    first = next(frames, None)
    if first is None:
        return None
    time = _time(first)
    position, missing = 0, 0.0  # samples from the start to the next frame; seconds
    if time is not None:
        begin = time if stream_start is None else stream_start
        if not GAP < time - begin < (length or LONGEST_GAP):  # no damaged time
            begin = time
        missing = max(0.0, time - max(begin, begin if start is None else start))
        position = round((time - (begin if start is None else start)) * rate)
    limit = sys.maxsize if seconds is None else round(seconds * rate)
    parts = [torch.zeros(2, min(max(0, position), limit))]
    for part in _frames(chain([first], frames), rate, length, missing, path):
        parts.append(part[:, max(0, -position) : max(0, limit - position)])
        position += part.shape[1]
        if position >= limit:
            break
        _check_size(2, position, rate, seconds, path)
    return torch.cat(parts, 1), rate


def _time(frame: av.AudioFrame) -> float | None:
    """Seconds at which a frame begins, where it says so."""
    return None if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)


def _check_size(channels: int, samples: int, rate: int, seconds: float | None, path: Path) -> None:
    """Raise InputError for a recording that would fill the memory."""
    if channels > MAX_CHANNELS:
        raise InputError(f"{path}: has {channels} channels, expected {MAX_CHANNELS} at most. Give a stereo recording.")
    if samples > MAX_RECORDING * rate and (seconds is None or seconds > MAX_RECORDING):
        raise InputError(f"{path}: lasts more than {MAX_RECORDING // 60} minutes. Give a part of it: of a recording by "
                         "--seconds, of a video in ComfyUI by Trim Video.")


def _frames(frames: Iterator[av.AudioFrame], rate: int, length: float | None, missing: float,
            path: Path) -> Iterator[Tensor]:
    """fp32 [2, n] of each decoded frame, at one rate whatever the frames have; silence where some are missing.

    length: in seconds, as far as the file says one; missing: seconds that are so before the first frame.
    """
    import av

    resampler: av.AudioResampler | None = None
    form = begin = None
    heard = 0.0  # seconds
    try:
        for frame in frames:
            time = _time(frame)
            if time is not None:
                begin = time - heard if begin is None else begin
                gap = time - begin - heard
                if GAP < gap < (LONGEST_GAP if length is None else length - heard):  # no damaged time
                    if resampler is not None:
                        yield from map(_stereo, resampler.resample(None))
                        resampler = None
                    yield torch.zeros(2, 1).expand(-1, round(gap * rate))
                    heard, missing = heard + gap, missing + gap
            heard += frame.samples / frame.sample_rate
            found = frame.format.name, frame.layout.name, frame.layout.nb_channels, frame.sample_rate
            if resampler is None or found != form:
                # A recording may change in its middle, as one cut together of several does.
                if resampler is not None:
                    yield from map(_stereo, resampler.resample(None))
                form = found
                # Only the format changes: channels are mixed as those of audio in memory are. Interleaved, because
                # PyAV crashes where eight or more channels lie apart.
                resampler = av.AudioResampler(format="flt", layout=frame.layout, rate=rate)
            frame.pts = None
            yield from map(_stereo, resampler.resample(frame))
        if resampler is not None:
            yield from map(_stereo, resampler.resample(None))
    finally:  # also where no more of it is wanted
        if missing > GAP:
            log.warning("%s: %.1f s of its sound are missing, and silent.", path, missing)


def _stereo(frame: av.AudioFrame) -> Tensor:
    """fp32 [2, n] of an interleaved frame."""
    samples = torch.from_numpy(frame.to_ndarray())  # [1, n * channels]
    names = [channel.name for channel in frame.layout.channels]
    return to_stereo(samples.view(-1, len(names)).T, names)
