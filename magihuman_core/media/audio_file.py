"""Reading audio from files: WAV and FLAC by soundfile where it is installed, all else by PyAV."""

from __future__ import annotations

import logging
import math
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..atomic import whole_file
from ..errors import InputError
from .container import best_stream, decoded, open_media
from .readable import check_readable
from .waveform import MAX_CHANNELS, MAX_RECORDING, as_audio, check_rate, to_stereo

if TYPE_CHECKING:
    import av

# What soundfile gives the same samples of as PyAV, to the bit.
FORMATS = ("WAV", "WAVEX", "FLAC")
SUBTYPES = ("PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")
BLOCK = 1 << 20  # samples read at a time, of all channels
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
    audio, rate = _read(path, seconds) or _decode(path, seconds)
    return as_audio(audio, rate, str(path))


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
            check_rate(file.samplerate, str(path))
            _check_size(file.channels, file.frames, file.samplerate, seconds, path)
            count = file.frames if seconds is None else min(file.frames, round(seconds * file.samplerate))
            blocks = file.blocks(BLOCK // file.channels, frames=count, dtype="float32", always_2d=True)
            parts = [to_stereo(torch.from_numpy(block.T)) for block in blocks]
    except (soundfile.SoundFileError, OSError, UnicodeError):
        return None  # PyAV may read more of it, or says what is wrong
    audio = torch.cat(parts, 1) if parts else torch.empty(2, 0)
    return (audio, file.samplerate) if audio.shape[1] == count else None


def _decode(path: Path, seconds: float | None) -> tuple[Tensor, int]:
    """The same of whatever FFmpeg reads. Raises InputError."""
    parts, count = [], 0
    with open_media(path, "audio", "Give a WAV or MP3 file.") as container:
        stream = best_stream(container, "audio")
        if stream is None:
            known = container.streams.audio
            raise InputError(f"{path}: " + ("its audio is in a format that is not known here. Convert it to WAV or MP3."
                                            if known else
                                            "has no sound. Give a recording, such as a WAV, MP3 or M4A file."))
        rate = stream.codec_context.sample_rate
        check_rate(rate, str(path))
        length = 0 if container.duration is None else container.duration * rate // 1_000_000
        _check_size(stream.codec_context.channels, length, rate, seconds, path)
        limit = math.inf if seconds is None else round(seconds * rate)
        known_length = None if container.duration is None else container.duration / 1_000_000
        for part in _frames(decoded(container, stream, path), rate, known_length, path):
            parts.append(part)
            count += part.shape[1]
            if count >= limit:
                break
            _check_size(2, count, rate, seconds, path)
    if not count:
        raise InputError(f"{path}: holds no sound at all. Give a recording that is not empty.")
    return torch.cat(parts, 1)[:, : int(min(count, limit))], rate


def _check_size(channels: int, samples: int, rate: int, seconds: float | None, path: Path) -> None:
    """Raise InputError for a recording that would fill the memory."""
    if channels > MAX_CHANNELS:
        raise InputError(f"{path}: has {channels} channels, expected {MAX_CHANNELS} at most. Give a stereo recording.")
    if samples > MAX_RECORDING * rate and (seconds is None or seconds > MAX_RECORDING):
        raise InputError(f"{path}: lasts more than {MAX_RECORDING // 60} minutes. Give a part of it, or say how much "
                         "of it is wanted (--seconds).")


def _frames(frames: Iterator[av.AudioFrame], rate: int, length: float | None, path: Path) -> Iterator[Tensor]:
    """fp32 [2, n] of each decoded frame, at one rate whatever the frames have; silence where some are missing.

    length: in seconds, as far as the file says one.
    """
    import av

    resampler: av.AudioResampler | None = None
    form = begin = None
    heard = missing = 0.0  # seconds
    for frame in frames:
        if frame.pts is not None and frame.time_base is not None:
            time = float(frame.pts * frame.time_base)
            begin = time - heard if begin is None else begin
            gap = time - begin - heard
            if GAP < gap < (LONGEST_GAP if length is None else length - heard):  # no damaged time
                if resampler is not None:
                    yield from map(_stereo, resampler.resample(None))
                    resampler = None
                yield torch.zeros(2, round(gap * rate))
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
    if missing:
        log.warning("%s: %.1f s of its sound are missing, and silent.", path, missing)


def _stereo(frame: av.AudioFrame) -> Tensor:
    """fp32 [2, n] of an interleaved frame."""
    samples = torch.from_numpy(frame.to_ndarray())  # [1, n * channels]
    return to_stereo(samples.view(-1, frame.layout.nb_channels).T)
