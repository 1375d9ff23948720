"""Audio as tensors: resampling and channels.

A waveform is [..., samples], usually [B, channels, samples] with values in [-1, 1].
"""

from math import gcd

import torch
from torch import Tensor

from ..errors import InputError

CENTRE = 0.5**0.5  # level of the centre channel in stereo, -3 dB
FADE = 441  # samples, 10 ms, over which audio is cross-faded
OUTPUT_RATE = 44100  # samples/s outside of the model: what players and AAC take


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


def to_stereo(waveform: Tensor) -> Tensor:
    """Bring [..., channels, samples] to two channels: mono is doubled, of more the first three are mixed.

    In the usual orders of channels (3.0, 5.1, 7.1) the first three are front left, front right and centre, and
    the centre is where films have speech. It goes to both sides at the level of ITU-R BS.775, -3 dB, and the sum
    is scaled so that it cannot exceed the loudest input. The rest is left out: effects from behind are not a voice.
    Four channels (quad) have no centre: front left and right are kept. Raises InputError for another shape.
    """
    if waveform.ndim < 2 or waveform.shape[-2] == 0:
        raise InputError(f"a waveform needs the shape [..., channels, samples], got {list(waveform.shape)}.")
    if waveform.shape[-2] == 1:
        return torch.cat((waveform, waveform), dim=-2)
    front = waveform[..., :2, :]
    if waveform.shape[-2] in (2, 4):
        return front
    return (front + CENTRE * waveform[..., 2:3, :]) / (1 + CENTRE)


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
