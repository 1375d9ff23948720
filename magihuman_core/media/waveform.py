"""Sound as tensors: resampling, channels, and the cross-fade that joins overlapping windows.

A waveform is [..., samples], usually [B, channels, samples] with values in [-1, 1].
"""

from collections.abc import Sequence
from math import ceil, gcd

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

CENTRE = 0.5**0.5  # level of the centre channel in stereo, -3 dB
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
        raise InputError(f"a sound of {waveform.shape[-1]} samples at {from_rate}/s is too short to resample "
                         f"to {to_rate}/s; give a longer one.")
    from scipy.signal import resample as fourier_resample

    resampled = fourier_resample(waveform.detach().cpu().float().numpy(), length, axis=-1)
    return torch.from_numpy(resampled).to(waveform)


def to_stereo(waveform: Tensor) -> Tensor:
    """Bring [..., channels, samples] to two channels: mono is doubled, of more the first three are mixed.

    In the usual orders of channels (3.0, 5.1, 7.1) the first three are front left, front right and centre, and
    the centre is where films have speech. It goes to both sides at the level of ITU-R BS.775, -3 dB, and the sum
    is scaled so that it cannot exceed the loudest input. The rest is left out: effects from behind are no voice.
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


def merge_overlap(windows: Sequence[Tensor], overlap: float = 0.5) -> Tensor:
    """Join windows of equal length along the last dimension with a linear cross-fade.

    windows: tensors [..., n], each overlapping the one before by o = int(n * overlap) entries. In the
    overlap entry j (from 0) is (o - j)/o of the old and j/o of the new window, so its first is all old.
    Returns [..., n + (len(windows) - 1) * (n - o)]. Differentiable.
    """
    if not windows:
        raise InputError("there are no windows to merge; give at least one.")
    length = windows[0].shape[-1]
    if any(window.shape != windows[0].shape for window in windows):
        raise InputError("windows to merge must all have the same shape, got "
                         f"{sorted({tuple(window.shape) for window in windows})}.")
    if not 0 <= overlap < 1:
        raise InputError(f"overlap must be at least 0 and less than 1, got {overlap}.")
    shared = int(length * overlap)
    if shared == 0 or len(windows) == 1:
        return torch.cat(list(windows), dim=-1)
    fade_in = torch.arange(shared, dtype=torch.float32, device=windows[0].device) / shared
    # An entry may lie in more than two windows when overlap > 0.5: fade into what is merged so far.
    merged = windows[0]
    for window in windows[1:]:
        head, tail = merged[..., :-shared], merged[..., -shared:]
        faded = tail * (1 - fade_in) + window[..., :shared] * fade_in
        merged = torch.cat((head, faded.to(window.dtype), window[..., shared:]), dim=-1)
    return merged


def pad_to_hop(waveform: Tensor, hop: int) -> Tensor:
    """Zeros at the end of [..., L], up to a multiple of hop."""
    return F.pad(waveform, (0, -waveform.shape[-1] % hop))


def encode_in_windows(encode, waveform: Tensor, hop: int, window: int) -> Tensor:
    """Encode a waveform [B, channels, L] of any length; the latent is [B, c, ceil(L / hop)].

    encode: one window [B, channels, n] -> [B, c, n // hop]. At most `window` samples go in one call.
    A longer sound is cut into windows that start half a window apart, the last one padded with zeros, and
    their latents are cross-faded.
    """
    length = waveform.shape[-1]
    if length <= window:
        return encode(pad_to_hop(waveform, hop))
    parts = []
    for start in range(0, length, window // 2):
        part = waveform[..., start:start + window]
        parts.append(encode(F.pad(part, (0, window - part.shape[-1]))))
        if start + window >= length:
            break
    # A window of 29 s has 725 latents, an odd number, so latents move by 363 where the sound moved by 362.5.
    # The model was made with this rounding, and so it stays.
    return merge_overlap(parts, 0.5)[..., :ceil(length * parts[0].shape[-1] / window)]
