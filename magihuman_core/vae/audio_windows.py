"""How the authors encode recordings of over 29 s: in overlapping windows whose latents are cross-faded.

Nothing here does it so, as each window moves the sound by half a latent (AudioVAE.encode_long, docs/model.md). It is
kept, and held to the recorded numbers, as the way in which the model was trained to hear long audio.
"""

from collections.abc import Callable, Sequence
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError


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


def encode_in_windows(encode: Callable[[Tensor], Tensor], waveform: Tensor, hop: int, window: int) -> Tensor:
    """Encode a waveform [B, channels, L] of any length; the latent is [B, c, ceil(L / hop)].

    encode: one window [B, channels, n] -> [B, c, n // hop]. At most `window` samples go in one call. Longer audio is
    cut into windows that start half a window apart, the last one padded with zeros, and their latents are cross-faded.
    """
    length = waveform.shape[-1]
    if length <= window:
        return encode(F.pad(waveform, (0, -length % hop)))
    parts = []
    for start in range(0, length, window // 2):
        part = waveform[..., start:start + window]
        parts.append(encode(F.pad(part, (0, window - part.shape[-1]))))
        if start + window >= length:
            break
    # A window of 29 s has 725 latents, an odd number, so latents move by 363 where the audio moved by 362.5.
    # The model was made with this rounding, and so it stays.
    return merge_overlap(parts, 0.5)[..., :ceil(length * parts[0].shape[-1] / window)]
