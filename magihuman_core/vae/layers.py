"""Operations without weights that both video autoencoders share. Tensors are [B, C, T, H, W].

Two things decide how long these networks take beside their convolutions. Where a device has an order in memory that its
convolutions work in, activations have it throughout (`memory_format`), so that nothing is converted and norms over
channels read what lies side by side. And frames that a convolution needs beyond its input's ends are never put there by
a copy of the whole: norm and activation write into a tensor that has room for them (`over_time`, `room_for`).
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]
PIECE_ELEMENTS = 1 << 28  # of a layer's input; half a GiB in bf16
WIDE = 512  # channels from which oneDNN's fp32 convolutions are faster in PyTorch's own order


class PixelFunction(Protocol):
    """Works on each pixel by itself, such as norm and activation; writes into `out` where that is given."""

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor: ...


def memory_format(x: Tensor) -> torch.memory_format:
    """The order in memory in which convolutions over x are fastest.

    On CPUs (oneDNN) and CUDA (cuDNN) that is with a pixel's channels side by side; elsewhere it may not even work.
    """
    wide = x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[1] >= WIDE
    return torch.contiguous_format if wide or x.device.type not in ("cpu", "cuda", "meta") else torch.channels_last_3d


def room_for(x: Tensor, frames: int) -> Tensor:
    """An empty tensor for so many frames like those of x, in the order that convolutions over it like."""
    shape = *x.shape[:2], frames, *x.shape[3:]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def channel_norm(x: Tensor, gamma: Tensor | None = None, *, eps: float = 0.0, least: float = 0.0,
                 out: Tensor | None = None) -> Tensor:
    """x over the root of the mean of its squares along channels, times gamma [C, 1, ...] if given.

    eps is added to the mean, which counts as `least` at least. It is computed in fp32, or in what x has beyond it,
    without an fp32 copy of x. out: written instead of a new tensor; only without gradients.
    """
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    mean = norm.square().div(x.shape[1])
    if least:
        mean = mean.clamp_min(least)
    scale = (mean.add(eps) if eps else mean).rsqrt()
    y = torch.mul(x, scale.to(x.dtype), out=out)
    if gamma is None:
        return y
    return y * gamma.to(x) if torch.is_grad_enabled() else y.mul_(gamma.to(x))


def channel_norm_silu(x: Tensor, gamma: Tensor | None = None, *, eps: float = 0.0, least: float = 0.0,
                      out: Tensor | None = None) -> Tensor:
    """What stands before most convolutions: channel_norm, then SiLU."""
    return F.silu(channel_norm(x, gamma, eps=eps, least=least, out=out), inplace=not torch.is_grad_enabled())


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, in x where no gradient can need it: a tensor that nobody else holds."""
    return x + y if torch.is_grad_enabled() else x.add_(y)


def convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """conv(x) for a 3-d convolution.

    PyTorch unfolds a small fp32 input on a CPU (C * T * H up to 20480) for a matrix product, which takes 27 times its
    memory and, unless there are many channels, up to 18 times as long as oneDNN's convolution; so that is called here.
    """
    plain = type(conv) is nn.Conv3d and not isinstance(conv.padding, str) and not torch.is_grad_enabled()
    if (plain and x.device.type == "cpu" and x.shape[1] < WIDE and x.dtype == conv.weight.dtype == torch.float32
            and has_onednn()):
        return torch.ops.aten.mkldnn_convolution(
            x, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups)
    return conv(x)


def has_onednn() -> bool:
    """Whether this PyTorch computes convolutions on a CPU with oneDNN."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def over_time(layer: Function, x: Tensor, context: int = 0, prepare: PixelFunction | None = None,
              onto: Tensor | None = None) -> Tensor:
    """layer(prepare(x)) for a layer that eats `context` frames on either side; the end frames are repeated.

    layer: [B, C, T + 2 context, H, W] -> [B, C', T, H', W']. Without gradients a long or large x goes through in pieces
    of time. The numbers are those of one piece, but neither the padded nor the prepared x is ever whole in memory, and
    no call reaches the 2^31 elements at which many kernels stop.
    onto: a tensor that nobody else needs; the result is added to it, without gradients in place.
    """
    length = x.shape[2]
    if torch.is_grad_enabled():
        x = x if prepare is None else prepare(x)
        ends = [x[:, :, :1]] * context, [x[:, :, -1:]] * context
        y = layer(torch.cat([*ends[0], x, *ends[1]], dim=2) if context else x)
        return y if onto is None else onto + y
    count = max(PIECE_ELEMENTS // max(x[:, :, 0].numel(), 1), 1)
    if length <= count:
        y = layer(_padded(x, 0, length, context, prepare))
        return y if onto is None else onto.add_(y)
    out = x.new_empty(0) if onto is None else onto
    for start in range(0, length, count):
        stop = min(start + count, length)
        piece = layer(_padded(x, start, stop, context, prepare))
        if onto is None:
            out = out if start else room_for(piece, length)
            out[:, :, start:stop] = piece
        else:
            out[:, :, start:stop] += piece
    return out


def _padded(x: Tensor, start: int, stop: int, context: int, prepare: PixelFunction | None) -> Tensor:
    """Frames start - context to stop + context of prepare(x), the end frames repeated where x has none."""
    before, after = max(context - start, 0), max(stop + context - x.shape[2], 0)
    part = x[:, :, start - context + before : stop + context - after]
    if prepare is None and not before and not after:
        return part
    frames = room_for(part, stop - start + 2 * context)
    inner = frames[:, :, before : frames.shape[2] - after]
    if prepare is None:
        inner.copy_(part)
    else:
        prepare(part, out=inner)
    frames[:, :, :before] = inner[:, :, :1]
    frames[:, :, frames.shape[2] - after :] = inner[:, :, -1:]
    return frames


def per_frame(layer: Function, x: Tensor) -> Tensor:
    """Apply a layer for images, [n, C, H, W] -> [n, C', H', W'], to every frame of x."""

    def on_frames(piece: Tensor) -> Tensor:
        y = layer(rearrange(piece, "b c t h w -> (b t) c h w"))
        return rearrange(y, "(b t) c h w -> b c t h w", b=piece.shape[0])

    return over_time(on_frames, x)


def interleave_time(x: Tensor) -> Tensor:
    """[B, 2C, T, H, W] -> [B, C, 2T, H, W]: frame 2t takes channels [0, C), frame 2t+1 takes [C, 2C)."""
    first, second = x.chunk(2, dim=1)
    out = room_for(first, 2 * x.shape[2])
    out[:, :, 0::2] = first
    out[:, :, 1::2] = second
    return out


def pixels_to_channels(x: Tensor, patch: int) -> Tensor:
    """Squares of pixels into channels: [B, C, T, H*p, W*p] -> [B, C*p*p, T, H, W], column before row."""
    return rearrange(x, "b c t (h row) (w col) -> b (c col row) t h w", row=patch, col=patch)


def channels_to_pixels(x: Tensor, patch: int) -> Tensor:
    """Channels back into squares of pixels, the inverse of pixels_to_channels."""
    return rearrange(x, "b (c col row) t h w -> b c t (h row) (w col)", row=patch, col=patch)
