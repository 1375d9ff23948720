"""Video and audio as one flat vector, so that every solver solves both jointly."""

from collections.abc import Sequence

import torch
from torch import Tensor

Shapes = Sequence[Sequence[int]]  # of the video, then of the audio


def pack_latents(video: Tensor, audio: Tensor) -> tuple[Tensor, list[list[int]]]:
    """video [B, C, T, H, W], audio [B, a, A] -> (flat [B, 1, n], shapes), video first, as ComfyUI packs."""
    flat = torch.cat([video.flatten(1), audio.flatten(1)], dim=1).unsqueeze(1)
    return flat, [list(video.shape), list(audio.shape)]


def unpack_latents(x: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor]:
    """The two streams of a flat [B, 1, n] vector, as views, with the batch size that x has."""
    video, audio = (tuple(shape)[1:] for shape in shapes)
    count = torch.Size(video).numel()
    flat = x.flatten(1)
    return flat[:, :count].unflatten(1, video), flat[:, count:].unflatten(1, audio)
