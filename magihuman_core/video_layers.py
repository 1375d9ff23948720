"""Operations without weights that both video autoencoders share. Tensors are [B, C, T, H, W]."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def channel_norm(x: Tensor) -> Tensor:
    """L2 norm over channels, [B, 1, ...] in fp32 whatever x is, without an fp32 copy of x."""
    return torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor nobody else holds: in place where no gradient can need the input."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer for pictures [n, C, H, W] to every frame of x."""
    batch = x.shape[0]
    y = layer(x.transpose(1, 2).flatten(0, 1))  # [B*T, C, H, W]
    return y.unflatten(0, (batch, -1)).transpose(1, 2)


def upsample_space(x: Tensor) -> Tensor:
    """Every pixel twice along both axes: [n, C, H, W] -> [n, C, 2H, 2W]."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def interleave_time(x: Tensor) -> Tensor:
    """[B, 2C, T, H, W] -> [B, C, 2T, H, W]: frame 2t takes channels [0, C), frame 2t+1 takes [C, 2C)."""
    x = x.unflatten(1, (2, -1))  # [B, 2, C, T, H, W]
    return x.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)


def patchify(x: Tensor, patch: int) -> Tensor:
    """Squares of pixels into channels: [B, C, T, H*p, W*p] -> [B, C*p*p, T, H, W], column before row."""
    x = x.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))  # [B, C, T, H, row, W, col]
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def unpatchify(x: Tensor, patch: int) -> Tensor:
    """Channels back into squares of pixels, the inverse of patchify."""
    x = x.unflatten(1, (-1, patch, patch))  # [B, C, col, row, T, H, W]
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
