"""Rotary positions over (time, height, width), and how the three modalities share them (docs/model.md)."""

import torch
from torch import Tensor, nn


class RotaryBands(nn.Module):
    """The frequencies of the rotary positions, a buffer of the checkpoint."""

    bands: Tensor

    def __init__(self, count: int, *, device=None):
        super().__init__()
        self.register_buffer("bands", rope_bands(count, device=device))


def rope_bands(count: int, device=None) -> Tensor:
    """Frequencies 10000^(-k/count), k = 0..count-1, fp32 [count]."""
    return 1.0 / 10000.0 ** (torch.arange(count, dtype=torch.float32, device=device) / count)


def token_coordinates(video: tuple[int, int, int], audio: int, text: int, positions: str) -> Tensor:
    """Nine numbers for each token, in sequence order: position, extent and reference extent.

    video: tokens along (T, H, W), that is after 2 x 2 patching; audio, text: numbers of tokens.
    Returns fp32 [N, 9] = (t, h, w, T, H, W, rT, rH, rW).
    """
    T, H, W = video
    grid = torch.cartesian_prod(torch.arange(T), torch.arange(H), torch.arange(W)).reshape(-1, 3)

    def line(count: int, start: int, reference: int) -> Tensor:
        rows = torch.zeros(count, 9)
        rows[:, 0] = torch.arange(start, start + count)
        rows[:, 3:] = torch.tensor([count, 1, 1, reference, 1, 1])
        return rows

    extent = torch.tensor([T, H, W, T, H, W]).expand(grid.shape[0], 6)
    if positions == "v2":
        # The audio's clock runs at 25 per second against the video's 6.25; text stands at one place.
        rest = [line(audio, 0, (audio - 1) // 4 + 1), line(text, -text, 1)]
    else:
        rest = [line(audio, 0, T), line(text, 0, 2)]
    return torch.cat([torch.cat([grid, extent], 1).float(), *rest])


def rope_tables(coordinates: Tensor, bands: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 9] coordinates and [B] bands -> (sin, cos), each fp32 [N, 3B], axes in the order t, h, w."""
    position, extent, reference = coordinates.unflatten(1, (3, 3)).unbind(1)
    single = (extent == 1) & (reference == 1)
    scale = torch.where(single, 1.0, (reference - 1) / (extent - 1))
    centre = (extent - 1) / 2
    centre[:, 0] = 0  # time counts from the clip's start, height and width from the middle
    angle = ((position - centre) * scale).unsqueeze(2) * bands  # [N, 3, B]
    return angle.sin().flatten(1), angle.cos().flatten(1)

