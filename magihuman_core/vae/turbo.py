"""The Turbo VAE: a small decoder from the Wan2.2 latent space to frames.

latent [B, 48, T, H, W] -> conv -> middle block -> up blocks -> norm, SiLU, conv -> [B, 3, 4T-3, 16H, 16W].
Not causal: time is padded by repeating the first and last frame. A clip is decoded in windows of a few
latent frames that overlap by one frame of context on either side, so memory is flat in its length.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..nn.operations import Operations
from .latent_statistics import LatentStatistics
from .layers import (
    PixelFunction,
    channel_norm,
    channel_norm_silu,
    channels_to_pixels,
    convolve,
    interleave_time,
    over_time,
    per_frame,
)
from .tiling import OVERLAP, decode_in_tiles, joined_frames
from .turbo_config import TurboVAEConfig

NORM_EPS = 1e-8


def norm_silu(x: Tensor, out: Tensor | None = None) -> Tensor:
    """What stands before most convolutions."""
    return channel_norm_silu(x, eps=NORM_EPS, out=out)


def norm_relu(x: Tensor, out: Tensor | None = None) -> Tensor:
    """What stands there in some blocks instead."""
    return F.relu(channel_norm(x, eps=NORM_EPS, out=out), inplace=not torch.is_grad_enabled())


class Conv(nn.Module):
    """3-d convolution that repeats the first and last frame beyond the clip and zeros beyond the image.

    prepare: what is done to each pixel before (norm and activation), piece by piece as well; onto: see over_time.
    """

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int], *, operations: Operations,
                 **factory: Any) -> None:
        super().__init__()
        self.context = kernel[0] // 2
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        self.conv = operations.Conv3d(inputs, outputs, kernel, padding=padding, **factory)

    def forward(self, x: Tensor, prepare: PixelFunction | None = None, onto: Tensor | None = None) -> Tensor:
        return over_time(partial(convolve, self.conv), x, self.context, prepare, onto)


class SeparableConv(nn.Module):
    """The same as a convolution per channel, then one that mixes the channels of a pixel."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.context = kernel // 2
        padding = (0, kernel // 2, kernel // 2)
        self.depthwise_conv = operations.Conv3d(inputs, inputs, kernel, padding=padding, groups=inputs, **factory)
        self.pointwise_conv = operations.Conv3d(inputs, outputs, 1, **factory)

    def forward(self, x: Tensor, prepare: PixelFunction | None = None, onto: Tensor | None = None) -> Tensor:
        mixed = lambda piece: self.pointwise_conv(self.depthwise_conv(piece))  # noqa: E731
        return over_time(mixed, x, self.context, prepare, onto)


class ResNet(nn.Module):
    """norm, activation, conv, norm, SiLU, conv, plus the input (projected where the width changes).

    Without gradients the input is used up: unless it is projected, the result is written into it.
    """

    def __init__(self, inputs: int, outputs: int, *, depthwise_kernel: int, relu: bool, eps: float,
                 **factory: Any) -> None:
        super().__init__()
        self.relu, self.eps = relu, eps

        def conv(inputs: int, outputs: int, shortcut: bool = False) -> Conv | SeparableConv:
            if depthwise_kernel:
                return SeparableConv(inputs, outputs, 1 if shortcut else depthwise_kernel, **factory)
            return Conv(inputs, outputs, (1, 1, 1) if shortcut else (3, 3, 3), **factory)

        conv1, conv2 = conv(inputs, outputs), conv(outputs, outputs)
        self.conv1, self.conv2 = conv1, conv2
        self.context = conv1.context + conv2.context  # frames on either side that it looks at
        self.conv_shortcut = conv(inputs, outputs, shortcut=True) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x, norm_relu if self.relu else norm_silu)
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x, lambda piece, out=None: channel_norm(piece, eps=self.eps, out=out))
        return self.conv2(y, norm_silu, onto=x)


class Upsampler(nn.Module):
    """Twice as many frames (unless spatio_only), then twice the height and width."""

    def __init__(self, channels: int, *, spatio_only: bool, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.time_conv, self.context = None, 0 if spatio_only else 1
        if not spatio_only:
            self.time_conv = Conv(channels, 2 * channels, (3, 1, 1), operations=operations, **factory)
        conv = operations.Conv2d(channels, channels, 3, padding=1, **factory)
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2), conv)

    def forward(self, x: Tensor, first_chunk: bool) -> Tensor:
        if self.time_conv is not None:
            x = interleave_time(self.time_conv(x))  # [B, C, 2T, H, W]
            if first_chunk:
                x = x[:, :, 1:]
        return per_frame(self.resample, x)


class UpBlock(nn.Module):
    """A change of width (if any), an upsampling (if any), then resnets."""

    def __init__(self, inputs: int, outputs: int, layers: int, *, scaling: bool, spatio_only: bool,
                 depthwise_kernel: int, eps: float, **factory: Any) -> None:
        super().__init__()
        common: dict[str, Any] = dict(depthwise_kernel=depthwise_kernel, eps=eps, **factory)
        self.conv_in = ResNet(inputs, outputs, relu=False, **common) if inputs != outputs else None
        self.upsamplers = nn.ModuleList()
        if scaling:
            self.upsamplers.append(Upsampler(outputs, spatio_only=spatio_only, **factory))
        self.resnets = nn.ModuleList(ResNet(outputs, outputs, relu=scaling, **common) for _ in range(layers))

    def layers(self) -> Iterator[nn.Module]:
        """In the order in which they run. There is no forward: while it ran, its caller would hold its input."""
        if self.conv_in is not None:
            yield self.conv_in
        yield from self.upsamplers
        yield from self.resnets


class MidBlock(nn.Module):
    """Resnets at the latent's own size."""

    def __init__(self, channels: int, layers: int, **common: Any) -> None:
        super().__init__()
        self.resnets = nn.Sequential(*(ResNet(channels, channels, relu=False, **common) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets(x)


class PixelShuffleConv(nn.Module):
    """3x3 convolution and pixel shuffle by two, frame by frame; a quarter of the channels remains."""

    def __init__(self, channels: int, *, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return per_frame(lambda frames: F.pixel_shuffle(self.conv(frames), 2), x)


class TurboVAEDecoder(nn.Module):
    """The network alone, on one window of raw latents."""

    def __init__(self, config: TurboVAEConfig, *, operations: Operations = nn, dtype=None, device=None) -> None:
        super().__init__()
        factory: dict[str, Any] = {"operations": operations, "dtype": dtype, "device": device}
        widths = config.decoder_block_out_channels[::-1]
        layers = config.decoder_layers_per_block[::-1]
        kernels = [config.decoder_dw_kernel_size if dw else 0 for dw in config.decoder_is_dw_conv[::-1]]
        eps = config.resnet_norm_eps
        self.conv_in = Conv(config.latent_channels, widths[0], (3, 3, 3), **factory)
        self.mid_block = MidBlock(widths[0], layers[0], depthwise_kernel=kernels[0], eps=eps, **factory)
        blocks = zip((widths[0], *widths), widths, layers[1:], config.decoder_spatio_temporal_scaling[::-1],
                     config.decoder_spatio_only[::-1], kernels[1:], strict=False)
        self.up_blocks = nn.ModuleList(
            UpBlock(inputs, outputs, count, scaling=scaling, spatio_only=spatio_only, depthwise_kernel=kernel,
                    eps=eps, **factory)
            for inputs, outputs, count, scaling, spatio_only, kernel in blocks)
        self.patch = config.patch_size if config.use_unpatchify else 1
        self.upsampler2d_1 = None if config.use_unpatchify else PixelShuffleConv(widths[-1], **factory)
        last = widths[-1] if config.use_unpatchify else widths[-1] // 4
        self.conv_out = Conv(last, config.out_channels * self.patch**2, (3, 3, 3), **factory)

    def forward(self, z: Tensor, first_chunk: bool = True, surplus: tuple[int, int] = (0, 0)) -> Tensor:
        """Raw latents [B, C, T, H, W] -> [B, 3, F, 16H, 16W] in about [-1, 1].

        F is 4T-3 for the first chunk of a clip, 4T for a later one (4 and 16 in the released network), less the
        `surplus`: so many frames at either end that nobody wants. They are dropped inside, once the layers to come
        need them no more for the frames between.
        """
        x = self.mid_block(self.conv_in(z))
        layers: list[Any] = [layer for block in self.up_blocks for layer in cast(UpBlock, block).layers()]
        doublings = [i for i, layer in enumerate(layers) if getattr(layer, "time_conv", None) is not None]
        last = doublings[-1] if doublings else -1  # after it, layers run on as many frames as come out
        for index, layer in enumerate(layers):
            if index > last:
                reach = sum(later.context for later in layers[index:]) + self.conv_out.context
                x, surplus = _cropped(x, surplus, reach)
            x = layer(x, first_chunk) if isinstance(layer, Upsampler) else layer(x)
        x, surplus = _cropped(x, surplus, self.conv_out.context)
        if self.upsampler2d_1 is not None:
            x = self.upsampler2d_1(norm_silu(x))
        x, _ = _cropped(self.conv_out(x, norm_silu), surplus, 0)
        return channels_to_pixels(x, self.patch) if self.patch > 1 else x


def _cropped(x: Tensor, surplus: tuple[int, int], reach: int) -> tuple[Tensor, tuple[int, int]]:
    """x without the surplus frames that lie further than `reach` from the others, and the surplus that is left."""
    before, after = (max(count - reach, 0) for count in surplus)
    return x[:, :, before : x.shape[2] - after], (surplus[0] - before, surplus[1] - after)


class TurboVAE(nn.Module):
    """Decoder, latent statistics and the window-by-window schedule."""

    def __init__(self, config: TurboVAEConfig | None = None, *, operations: Operations = nn, dtype=None,
                 device=None) -> None:
        super().__init__()
        self.config = config = config or TurboVAEConfig()
        self.statistics = LatentStatistics.for_channels(config.latent_channels)
        self.decoder = TurboVAEDecoder(config, operations=operations, dtype=dtype, device=device)

    def forward(self, z: Tensor, first_chunk: bool = True) -> Tensor:
        """The network on a whole short clip of raw latents in one window, as for training."""
        return self.decoder(z, first_chunk)

    def decode(self, z: Tensor, *, normalized: bool = True, tile: int | None = None, overlap: int = OVERLAP,
               output_device: torch.device | str | None = None) -> Tensor:
        """Latents [B, C, T, H, W] -> frames [B, 3, 4T-3, 16H, 16W] in about [-1, 1], in the dtype of z.

        normalized: whether z is normalized (as the Transformer has it) or raw (as ComfyUI's sockets do).
        tile, overlap: in latent pixels; decode images larger than `tile` in tiles with blended seams, and put them
        together in main memory. output_device: where the frames are put together, so that z's device need not hold the
        clip; None: z's, or with tiles main memory.
        Raises InputError when z has another number of dimensions or channels, or is empty.
        """
        self.check_latent(z)
        windows = self.decode_windows(z, normalized=normalized, tile=tile, overlap=overlap)
        return joined_frames(windows, self.config.temporal_factor * (z.shape[2] - 1) + 1, output_device)

    def decode_windows(self, z: Tensor, *, normalized: bool = True, tile: int | None = None,
                       overlap: int = OVERLAP) -> Iterator[Tensor]:
        """The same frames as decode gives, in pieces [B, 3, f, 16H, 16W] of one window each, in order."""
        for decode in self.windows(z, normalized=normalized, tile=tile, overlap=overlap):
            yield decode()

    def windows(self, z: Tensor, *, normalized: bool = True, tile: int | None = None,
                overlap: int = OVERLAP) -> list[Callable[[], Tensor]]:
        """The windows of decode_windows, each decoded when it is called, in any order."""
        self.check_latent(z)
        if normalized:
            z = self.statistics.denormalize(z)
        first, step, factor = self.config.first_chunk_size, self.config.step_size, self.config.temporal_factor
        length = z.shape[2]
        windows = max(-(-(length - first) // step), 0)  # after the first, rounded up
        padding = first + windows * step - length
        z = torch.cat([z, z[:, :, -1:].expand(-1, -1, padding, -1, -1)], dim=2)
        found: list[Callable[[], Tensor]] = []
        for index in range(windows + 1):
            start, stop = (0, first) if index == 0 else (first + (index - 1) * step, first + index * step)
            # One latent frame of context on either side, whose frames are thrown away.
            before, after = int(index > 0), int(index < windows)
            surplus = factor * before, factor * (after if index < windows else padding)
            part = z[:, :, start - before : stop + after]
            found.append(partial(self._decode_window, part, index == 0, surplus, tile, overlap))
        return found

    def _decode_window(self, z: Tensor, first_chunk: bool, surplus: tuple[int, int], tile: int | None,
                       overlap: int) -> Tensor:
        def decode(part: Tensor, _: tuple[int, int] = (0, 0)) -> Iterator[Tensor]:
            yield self.decoder(part.to(self.dtype), first_chunk, surplus).to(z.dtype)

        if tile is None:
            return next(decode(z))
        return decode_in_tiles(decode, z, tile, overlap, self.config.spatial_factor)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in."""
        return next(self.decoder.conv_in.parameters()).dtype

    def check_latent(self, z: Tensor) -> None:
        if z.ndim != 5 or z.shape[1] != self.config.latent_channels or 0 in z.shape:
            raise InputError(f"The latent has shape {list(z.shape)}, but this Turbo VAE decodes"
                             f" [B, {self.config.latent_channels}, T, H, W]. Give a latent of its kind.")
