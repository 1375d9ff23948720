"""Building blocks of the Wan2.2 VAE: causal in time, so a clip can go through piece by piece.

Everything that looks back in time takes `state`, a dictionary in which each layer keeps, under itself,
the last frames it saw. With state None a clip goes through in one piece; the numbers are the same, because
the first frame of a clip is never mixed with later ones by the steps that change the frame rate.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from ..errors import InputError
from ..nn.operations import Operations
from .layers import PixelFunction, add, channel_norm, channel_norm_silu, convolve, interleave_time, per_frame, room_for

State = dict[nn.Module, Tensor] | None


class RMSNorm(nn.Module):
    """Channels scaled to length sqrt(C), times gamma [C, 1, ...]. For [B, C, ...] of any number of axes."""

    def __init__(self, channels: int, axes: int, *, dtype=None, device=None) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * axes, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return channel_norm(x, self.gamma, least=self.least(x))

    def silu(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """The norm, then SiLU."""
        return channel_norm_silu(x, self.gamma, least=self.least(x), out=out)

    def least(self, x: Tensor) -> float:
        """Mean of squares of channels whose length is 1e-12: shorter ones are not stretched further."""
        return 1e-24 / x.shape[1]


def causal(conv: nn.Module, x: Tensor, state: State, prepare: PixelFunction | None = None) -> Tensor:
    """Apply a convolution to prepare(x): the present frame and the two before it; zeros before a clip's first."""
    return convolve(conv, with_past(conv, x, state, prepare))


def with_past(conv: nn.Module, x: Tensor, state: State, prepare: PixelFunction | None = None) -> Tensor:
    """The two frames before those of prepare(x), and these: what `causal` applies a convolution to."""
    past = None if state is None else state.get(conv)
    if torch.is_grad_enabled():
        x = x if prepare is None else prepare(x)
        frames = torch.cat([x.new_zeros(*x.shape[:2], 2, *x.shape[3:]) if past is None else past, x], dim=2)
    else:
        frames = room_for(x, 2 + x.shape[2])
        frames[:, :, :2] = 0 if past is None else past
        if prepare is None:
            frames[:, :, 2:] = x
        else:
            prepare(x, out=frames[:, :, 2:])
    if state is not None:
        state[conv] = frames[:, :, -2:].clone()  # a view would keep the whole piece in memory
    return frames


def conv3d(inputs: int, outputs: int, *, operations: Operations, **factory: Any) -> nn.Module:
    """3x3x3 for use with `causal`: padded in space only."""
    return operations.Conv3d(inputs, outputs, 3, padding=(0, 1, 1), **factory)


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input (projected where the width changes)."""

    def __init__(self, inputs: int, outputs: int, *, operations: Operations, **factory: Any) -> None:
        super().__init__()
        # Numbered as in the checkpoint, where SiLU and dropout have numbers too.
        self.residual = nn.ModuleDict({"0": RMSNorm(inputs, 3, **factory),
                                       "2": conv3d(inputs, outputs, operations=operations, **factory),
                                       "3": RMSNorm(outputs, 3, **factory),
                                       "6": conv3d(outputs, outputs, operations=operations, **factory)})
        self.shortcut = operations.Conv3d(inputs, outputs, 1, **factory) if inputs != outputs else None

    def forward(self, x: Tensor, state: State) -> Tensor:
        norm1, conv1, norm2, conv2 = self.residual.values()
        y = causal(conv1, x, state, cast(RMSNorm, norm1).silu)
        y = with_past(conv2, y, state, cast(RMSNorm, norm2).silu)  # what conv1 gave is let go before conv2 runs
        y = convolve(conv2, y)
        return add(y, x if self.shortcut is None else convolve(self.shortcut, x))


class AttentionBlock(nn.Module):
    """Attention with one head among the pixels of each frame."""

    def __init__(self, channels: int, *, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, 2, **factory)
        self.to_qkv = operations.Conv2d(channels, 3 * channels, 1, **factory)
        self.proj = operations.Conv2d(channels, channels, 1, **factory)

    def forward(self, x: Tensor, state: State) -> Tensor:
        return add(per_frame(self._attend, x), x)

    def _attend(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        qkv = rearrange(self.to_qkv(self.norm(frames)), "n c h w -> n (h w) c")
        q, k, v = (part.contiguous().unsqueeze(1) for part in qkv.chunk(3, dim=-1))  # [n, 1, H*W, C]
        y = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return self.proj(rearrange(y, "n (h w) c -> n c h w", h=height, w=width))


class Downsample(nn.Module):
    """Half the height and width, and with `temporal` half the frames: 1 + 2n become 1 + n."""

    def __init__(self, channels: int, temporal: bool, *, operations: Operations, **factory: Any) -> None:
        super().__init__()
        # Padded right and below only, as the network was trained.
        conv = operations.Conv2d(channels, channels, 3, stride=2, **factory)
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), conv)
        self.time_conv = None
        if temporal:
            self.time_conv = operations.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1), **factory)

    def forward(self, x: Tensor, state: State) -> Tensor:
        x = per_frame(self.resample, x)
        if self.time_conv is None:
            return x
        past = None if state is None else state.get(self)
        if state is not None:
            state[self] = x[:, :, -1:].clone()
        if past is not None:
            return convolve(self.time_conv, torch.cat([past, x], dim=2))
        # The first frame of a clip passes as it is, and is the past of those that follow.
        return x if x.shape[2] == 1 else torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)


class Upsample(nn.Module):
    """Twice the height and width, and with `temporal` twice the frames: 1 + n become 1 + 2n."""

    def __init__(self, channels: int, temporal: bool, *, operations: Operations, **factory: Any) -> None:
        super().__init__()
        conv = operations.Conv2d(channels, channels, 3, padding=1, **factory)
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2), conv)
        self.time_conv = None
        if temporal:
            self.time_conv = operations.Conv3d(channels, 2 * channels, (3, 1, 1), **factory)

    def forward(self, x: Tensor, state: State, first: bool) -> Tensor:
        if self.time_conv is not None:
            # The first frame of a clip is not doubled, and the convolution never sees it.
            kept, x = (x[:, :, :1], x[:, :, 1:]) if first else (None, x)
            if x.shape[2]:
                x = interleave_time(causal(self.time_conv, x, state))
            x = x if kept is None else torch.cat([kept, x], dim=2)
        return per_frame(self.resample, x)


def down_shortcut(x: Tensor, outputs: int, time: int, space: int) -> Tensor:
    """Squares of pixels (and pairs of frames) into channels, then the mean of groups of channels.

    [B, C, T, H, W] -> [B, outputs, ceil(T / time), H / space, W / space]. An odd first frame is paired with
    zeros before it.
    """
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % time, 0))
    x = rearrange(x, "b c (t time) (h row) (w col) -> b (c time row col) t h w", time=time, row=space, col=space)
    return reduce(x, "b (c group) t h w -> b c t h w", "mean", c=outputs)


def up_shortcut(x: Tensor, outputs: int, time: int, space: int, first: bool) -> Tensor:
    """Repeated channels into squares of pixels (and pairs of frames), the counterpart of down_shortcut.

    [B, C, T, H, W] -> [B, outputs, time*T, space*H, space*W]; the first frame of a clip stays one frame.
    """
    x = repeat(x, "b c t h w -> b (c times) t h w", times=outputs * time * space * space // x.shape[1])
    x = rearrange(x, "b (c time row col) t h w -> b c (t time) (h row) (w col)", time=time, row=space, col=space)
    return x[:, :, time - 1 :] if first else x


class DownStage(nn.Module):
    """Residual blocks and a downsampling (but in the last stage), beside a shortcut without weights."""

    def __init__(self, inputs: int, outputs: int, blocks: int, *, last: bool, temporal: bool, **factory: Any) -> None:
        super().__init__()
        self.outputs = outputs
        self.factors = (1, 1) if last else (1 + temporal, 2)
        _check_divides(outputs, inputs * self.factors[0] * self.factors[1] ** 2)
        self.downsamples = nn.ModuleList(
            ResidualBlock(outputs if i else inputs, outputs, **factory) for i in range(blocks))
        if not last:
            self.downsamples.append(Downsample(outputs, temporal, **factory))

    def forward(self, x: Tensor, state: State) -> Tensor:
        shortcut = down_shortcut(x, self.outputs, *self.factors)
        for layer in self.downsamples:
            x = layer(x, state)
        return add(x, shortcut)


class UpStage(nn.Module):
    """Residual blocks, then (but in the last stage) an upsampling, beside a shortcut without weights."""

    def __init__(self, inputs: int, outputs: int, blocks: int, *, last: bool, temporal: bool, **factory: Any) -> None:
        super().__init__()
        self.outputs = outputs
        self.factors = None if last else (1 + temporal, 2)
        self.upsamples = nn.ModuleList(
            ResidualBlock(outputs if i else inputs, outputs, **factory) for i in range(blocks))
        if self.factors is not None:
            _check_divides(inputs, outputs * self.factors[0] * self.factors[1] ** 2)
            self.upsamples.append(Upsample(outputs, temporal, **factory))

    def forward(self, x: Tensor, state: State, first: bool) -> Tensor:
        y = x
        for layer in self.upsamples:
            y = layer(y, state, first) if isinstance(layer, Upsample) else layer(y, state)
        # Made last, since it is up to eight times as large as x.
        return y if self.factors is None else add(y, up_shortcut(x, self.outputs, *self.factors, first))


def _check_divides(divisor: int, number: int) -> None:
    if number % divisor:
        raise InputError(f"A shortcut between {number} and {divisor} channels must divide evenly."
                         " Choose widths of which one is a multiple of the other.")
