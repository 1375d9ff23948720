"""Audio as tensors: resampling and channels.

A waveform is [..., samples], usually [B, channels, samples] with values in [-1, 1].
"""

import logging
from collections.abc import Sequence
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, shown

CENTRE = 0.5**0.5  # level of the centre channel in stereo, -3 dB
FADE = 441  # samples, 10 ms, over which audio is cross-faded
OUTPUT_RATE = 44100  # samples/s outside of the model: what players and AAC take
RATES = (1000, 768_000)  # samples/s of recordings, lowest and highest
MAX_CHANNELS = 64
MAX_RECORDING = 3600  # seconds of a recording that is held in memory
MARGIN = 0.1  # seconds of silence around a recording while it is resampled
DECIBEL = 10 ** (1 / 20)

log = logging.getLogger(__name__)


def check_rate(rate: object, name: str) -> int:
    """A sampling rate in samples per second as a whole number. name: of the recording. Raises InputError."""
    try:
        whole = int(rate)  # type: ignore[call-overload]
        fits = not isinstance(rate, bool | str) and whole == rate and RATES[0] <= whole <= RATES[1]
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise InputError(f"{name} has the sampling rate {shown(rate)}, expected {RATES[0]} to {RATES[1]} samples per "
                         "second. Give another recording.")
    return whole


def as_audio(waveform: Tensor, rate: object, name: str) -> tuple[Tensor, int]:
    """A recording of any sort of numbers and channels -> (fp32 [2, samples] in [-1, 1], rate).

    waveform: [channels, samples]; whole numbers are taken by the range of their dtype. One that is louder than full
    scale is made quieter, and not clipped. name: messages begin with it: "The audio", or "a.wav:". Raises InputError.
    """
    if not isinstance(waveform, Tensor) or waveform.ndim != 2 or not waveform.shape[0] or waveform.is_complex():
        found = f"shape {tuple(waveform.shape)}" if isinstance(waveform, Tensor) else type(waveform).__name__
        raise InputError(f"{name} is {found}, expected a tensor [channels, samples]. Give another recording.")
    rate = check_rate(rate, name)
    if waveform.shape[0] > MAX_CHANNELS:
        raise InputError(f"{name} has {waveform.shape[0]} channels, expected {MAX_CHANNELS} at most. Give a stereo "
                         "recording: [channels, samples].")
    waveform = to_stereo(as_floating(waveform, name))
    peak = float(waveform.abs().amax()) if waveform.numel() else 1.0  # which NaN and infinity survive
    if not peak < float("inf"):
        raise InputError(f"{name} holds samples that are not numbers. Export the sound again.")
    if peak == 0:
        log.warning("%s is silent from beginning to end.", name)
    if peak > 1:
        level = logging.INFO if peak < DECIBEL else logging.WARNING  # lossy formats decode to a little more than 1
        log.log(level, "%s is louder than full scale (up to %.3g times): it is made quieter, and not clipped.", name,
                peak)
        waveform = waveform / peak
    return waveform, rate


def as_floating(waveform: Tensor, name: str) -> Tensor:
    """Samples as fp32, where full scale is 1. name: of the recording, for messages. Raises InputError."""
    if not isinstance(waveform, Tensor):
        raise InputError(f"{name} is {type(waveform).__name__}, expected a tensor.")
    if waveform.is_floating_point():
        return waveform.float()
    if waveform.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32):
        raise InputError(f"{name} has samples of {str(waveform.dtype)[6:]}, whose range is not known. Give floating "
                         "ones in [-1, 1], or int16.")
    if waveform.dtype == torch.uint8:  # of WAV, with its zero in the middle
        return (waveform.float() - 128) / 128
    return (waveform.double() / -float(torch.iinfo(waveform.dtype).min)).float()


def resample_recording(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Change the sampling rate of a recording: as `resample`, but its end does not run into its beginning.

    Fourier resampling takes a waveform for a period: one that ends loud would click where it starts. So it lies in
    silence meanwhile, of a length that makes the ratio of the rates exact.
    """
    if from_rate == to_rate or from_rate <= 0 or to_rate <= 0:
        return resample(waveform, from_rate, to_rate)
    divisor, count = gcd(from_rate, to_rate), waveform.shape[-1]
    length = count * (to_rate // divisor) // (from_rate // divisor)
    if length == 0:
        return resample(waveform, from_rate, to_rate)  # which says that it is too short
    unit = from_rate // divisor  # samples that become a whole number of others
    before = -(-round(MARGIN * from_rate) // unit) * unit
    after = before + -count % unit
    resampled = resample(F.pad(waveform, (before, after)), from_rate, to_rate)
    start = before // unit * (to_rate // divisor)
    return resampled[..., start : start + length]


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Change the sampling rate along the last dimension by Fourier resampling, as the model's authors do.

    waveform: [..., n] floating. Returns [..., int(n * to_rate / from_rate)] in the same dtype and on the same
    device; the length is rounded down, and 51200 -> 44100 is the ratio 441/512.
    Raises InputError for rates that are not positive, or when nothing would be left.
    """
    if from_rate <= 0 or to_rate <= 0:
        raise InputError(f"sampling rates must be positive, got {from_rate} and {to_rate} samples/s.")
    if from_rate == to_rate:
        return waveform
    divisor = gcd(int(from_rate), int(to_rate))
    # Whole-number arithmetic: a float ratio would now and then lose a sample.
    length = waveform.shape[-1] * (int(to_rate) // divisor) // (int(from_rate) // divisor)
    if length == 0:
        raise InputError(f"audio of {waveform.shape[-1]} samples at {from_rate}/s is too short to resample "
                         f"to {to_rate}/s; give more.")
    from scipy.signal import resample as fourier_resample

    resampled = fourier_resample(waveform.detach().cpu().float().numpy(), length, axis=-1)
    return torch.from_numpy(resampled).to(waveform)


def to_stereo(waveform: Tensor, names: Sequence[str] = ()) -> Tensor:
    """Bring [..., channels, samples] to two channels: mono is doubled, front left, front right and centre are mixed.

    The centre is where films have speech. It goes to both sides at the level of ITU-R BS.775, -3 dB, and the sum is
    scaled so that it cannot exceed the loudest input. The rest is left out: bass and effects from behind are no voice.
    names: of the channels as FFmpeg has them, FL, FR, FC and so on. Without these they are taken by their number: four
    are quad, without a centre; in other usual orders (3.0, 5.1, 7.1) the first three are those of the front.
    Raises InputError for another shape.
    """
    if waveform.ndim < 2 or waveform.shape[-2] == 0:
        raise InputError(f"a waveform needs the shape [..., channels, samples], got {list(waveform.shape)}.")
    count = waveform.shape[-2]
    if {"FL", "FR"} <= set(names):
        left, right = names.index("FL"), names.index("FR")
        centre = names.index("FC") if "FC" in names else None
    elif "FC" in names:
        left = right = names.index("FC")
        centre = None
    else:
        left, right, centre = 0, min(1, count - 1), None if count in (1, 2, 4) else 2
    front = torch.stack((waveform[..., left, :], waveform[..., right, :]), dim=-2)
    return front if centre is None else (front + CENTRE * waveform[..., centre : centre + 1, :]) / (1 + CENTRE)


def replaced(waveform: Tensor, other: Tensor, start: int, end: int) -> Tensor:
    """A waveform [2, n] with its samples from start to end those of another, cross-faded at both inner ends."""
    end = min(end, waveform.shape[1], other.shape[1])
    length = end - start
    share = torch.ones(length)
    fade = min(FADE, length)
    if start > 0:
        share[:fade] *= torch.linspace(0, 1, fade)
    if end < waveform.shape[1]:
        share[length - fade :] *= torch.linspace(1, 0, fade)
    result = waveform.clone()
    result[:, start:end] = torch.lerp(waveform[:, start:end], other[:, start:end].to(waveform), share)
    return result


def continued(waveform: Tensor, other: Tensor, overlap: int) -> Tensor:
    """A waveform [2, n] and what comes after it: another [2, m] that begins with its last `overlap` samples.

    Those are heard in both, so one is faded into the other at the joint; without any they simply follow.
    """
    if overlap:
        same = torch.cat([waveform[:, :-overlap], other[:, :overlap]], 1)
        waveform = replaced(waveform, same, waveform.shape[1] - min(FADE, overlap), waveform.shape[1])
    return torch.cat([waveform, other[:, overlap:].to(waveform)], 1)
