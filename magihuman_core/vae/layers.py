"""Operations without weights that both video autoencoders share. Tensors are [B, C, T, H, W]."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

PixelFunction = Callable[[Tensor], Tensor]
PIECE_ELEMENTS = 1 << 28  # of a layer's input; half a GiB in bf16


def channel_norm(x: Tensor) -> Tensor:
    """L2 norm over channels, [B, 1, ...] in fp32 or what x has beyond it, without an fp32 copy of x."""
    return torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor nobody else holds: in place where no gradient can need the input."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def over_time(layer: PixelFunction, x: Tensor, context: int = 0, prepare: PixelFunction | None = None) -> Tensor:
    """layer(prepare(x)) for a layer that eats `context` frames on either side; the end frames are repeated.

    layer: [B, C, T + 2 context, H, W] -> [B, C', T, H', W']. prepare works on each pixel by itself. Without gradients a
    long or large x goes through in pieces of time. The numbers are those of one piece, but neither the padded nor the
    prepared x is ever whole in memory, and no call reaches the 2^31 elements at which many kernels stop.
    """
    length = x.shape[2]
    count = max(PIECE_ELEMENTS // max(x[:, :, 0].numel(), 1), 1)
    if torch.is_grad_enabled() or length <= count:
        x = x if prepare is None else prepare(x)
        ends = [x[:, :, :1]] * context, [x[:, :, -1:]] * context
        return layer(torch.cat([*ends[0], x, *ends[1]], dim=2) if context else x)
    out = x.new_empty(0)
    for start in range(0, length, count):
        stop = min(start + count, length)
        frames = torch.arange(start - context, stop + context, device=x.device).clamp(0, length - 1)
        piece = x.index_select(2, frames)
        piece = layer(piece if prepare is None else prepare(piece))
        if start == 0:
            out = piece.new_empty(*piece.shape[:2], length, *piece.shape[3:])
        out[:, :, start:stop] = piece
    return out


def per_frame(layer: PixelFunction, x: Tensor) -> Tensor:
    """Apply a layer for images, [n, C, H, W] -> [n, C', H', W'], to every frame of x."""

    def on_frames(piece: Tensor) -> Tensor:
        y = layer(rearrange(piece, "b c t h w -> (b t) c h w"))
        return rearrange(y, "(b t) c h w -> b c t h w", b=piece.shape[0])

    return over_time(on_frames, x)


def interleave_time(x: Tensor) -> Tensor:
    """[B, 2C, T, H, W] -> [B, C, 2T, H, W]: frame 2t takes channels [0, C), frame 2t+1 takes [C, 2C)."""
    return rearrange(x, "b (two c) t h w -> b c (t two) h w", two=2)


def pixels_to_channels(x: Tensor, patch: int) -> Tensor:
    """Squares of pixels into channels: [B, C, T, H*p, W*p] -> [B, C*p*p, T, H, W], column before row."""
    return rearrange(x, "b c t (h row) (w col) -> b (c col row) t h w", row=patch, col=patch)


def channels_to_pixels(x: Tensor, patch: int) -> Tensor:
    """Channels back into squares of pixels, the inverse of pixels_to_channels."""
    return rearrange(x, "b (c col row) t h w -> b c t (h row) (w col)", row=patch, col=patch)
