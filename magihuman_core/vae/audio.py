"""The audio VAE: Stable Audio Open's Oobleck autoencoder, run at 51.2 kHz.

1D convolutions and snake activations, 2048 samples per latent, 64 latent channels. It was trained at 44.1 kHz.
MagiHuman feeds it 51.2 kHz, so that there are 25 latents, one per video frame, in a second.

Modules are named as in the official file (below `pretransform.model.`). Its convolutions are weight-normed, with
weight_g and weight_v; here each has the one weight that these give, which loading computes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, InputError
from ..nn.operations import Operations

SAMPLE_RATE = 51200
TILE = 125  # latents (5 s) that go through the network at a time: bounds memory
DILATIONS = (1, 3, 9)


@dataclass(frozen=True)
class AudioVAEConfig:
    """Sizes of the autoencoder; the defaults are Stable Audio Open 1.0's.

    widths: channels of the encoder at the input rate and after each of its blocks (one more than strides).
    decoder_widths: the same for the decoder, also from the finest to the coarsest rate; None: as the encoder.
    """

    widths: tuple[int, ...] = (128, 128, 256, 512, 1024, 2048)
    strides: tuple[int, ...] = (2, 4, 4, 8, 8)
    latent_channels: int = 64
    audio_channels: int = 2
    decoder_widths: tuple[int, ...] | None = None

    @property
    def hop(self) -> int:
        """Samples per latent."""
        return prod(self.strides)

    def latents(self, samples: int) -> int:
        """Latents that the encoder makes of so many samples: samples // hop where all strides are even."""
        for stride in self.strides:
            # A kernel of 2 strides over an input padded by ceil(stride / 2) on both sides.
            samples = max(0, (samples + 2 * ceil(stride / 2)) // stride - 1)
        return samples

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], name: str) -> "AudioVAEConfig":
        """Infer all sizes from the shapes of the module's weights. Raises CheckpointError, with `name`."""

        def shape(layer: str) -> tuple[int, ...]:
            if f"{layer}.weight" not in shapes:
                raise CheckpointError(f"{name}: {layer} has no weights, so this is not a complete audio VAE. "
                                      "Choose Stable Audio Open's, or its VAE.")
            return shapes[f"{layer}.weight"]

        count = 0
        while f"encoder.layers.{count + 1}.layers.4.weight" in shapes:
            count += 1
        first, last = shape("encoder.layers.0"), shape(f"encoder.layers.{count + 2}")
        down = [shape(f"encoder.layers.{i + 1}.layers.4") for i in range(count)]
        up = [shape(f"decoder.layers.{count - i}.layers.1") for i in range(count)]  # finest rate first
        coarsest = shape("decoder.layers.0")
        config = cls(
            widths=(first[0], *(s[0] for s in down)),
            strides=tuple(s[-1] // 2 for s in down),
            latent_channels=coarsest[1],
            audio_channels=first[1],
            decoder_widths=(*(s[1] for s in up), coarsest[0]),
        )
        if count == 0 or last[0] != 2 * config.latent_channels:
            raise CheckpointError(f"{name}: the encoder ends in {last[0]} channels and the decoder starts from "
                                  f"{config.latent_channels}; an audio VAE's encoder has twice as many, for mean and "
                                  "scale. Choose another file.")
        return config


class Snake(nn.Module):
    """x + sin(a x)^2 / b, with a = e^alpha and b = e^beta learnt per channel."""

    def __init__(self, channels: int, *, dtype=None, device=None):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels, dtype=dtype, device=device))
        self.beta = nn.Parameter(torch.zeros(channels, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        a = self.alpha.to(x).exp()[:, None]
        scale = 1 / (self.beta.to(x).exp() + 1e-9)[:, None]
        if torch.is_grad_enabled():
            return x + scale * torch.sin(a * x).square()
        # Activations at the full rate are the largest tensors by far: two of them here, not five.
        return torch.mul(x, a).sin_().square_().mul_(scale).add_(x)


class Layers(nn.Module):
    """Modules that follow one another, under the name they have in the official file."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ResidualUnit(Layers):
    """Snake, dilated convolution, snake, pointwise convolution, plus the input. [B, C, n] -> same."""

    def __init__(self, channels: int, dilation: int, *, operations: Operations, **factory: Any):
        super().__init__(
            Snake(channels, **factory),
            operations.Conv1d(channels, channels, 7, padding=3 * dilation, dilation=dilation, **factory),
            Snake(channels, **factory),
            operations.Conv1d(channels, channels, 1, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class EncoderBlock(Layers):
    """Three residual units, then a strided convolution. [B, C, n] -> [B, C', n / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, operations: Operations, **factory: Any):
        super().__init__(
            *(ResidualUnit(in_channels, dilation, operations=operations, **factory) for dilation in DILATIONS),
            Snake(in_channels, **factory),
            operations.Conv1d(in_channels, out_channels, 2 * stride, stride=stride, padding=ceil(stride / 2),
                              **factory),
        )


class DecoderBlock(Layers):
    """A transposed convolution, then three residual units. [B, C, n] -> [B, C', n * stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, operations: Operations, **factory: Any):
        super().__init__(
            Snake(in_channels, **factory),
            operations.ConvTranspose1d(in_channels, out_channels, 2 * stride, stride=stride, padding=ceil(stride / 2),
                                       **factory),
            *(ResidualUnit(out_channels, dilation, operations=operations, **factory) for dilation in DILATIONS),
        )


class OobleckEncoder(Layers):
    """Waveform [B, audio_channels, L] -> mean and raw scale, [B, 2 * latent_channels, L // hop]."""

    def __init__(self, config: AudioVAEConfig, *, operations: Operations, **factory: Any):
        widths = config.widths
        super().__init__(
            operations.Conv1d(config.audio_channels, widths[0], 7, padding=3, **factory),
            *(EncoderBlock(widths[i], widths[i + 1], stride, operations=operations, **factory)
              for i, stride in enumerate(config.strides)),
            Snake(widths[-1], **factory),
            operations.Conv1d(widths[-1], 2 * config.latent_channels, 3, padding=1, **factory),
        )


class OobleckDecoder(Layers):
    """Latent [B, latent_channels, n] -> waveform [B, audio_channels, n * hop], not clamped."""

    def __init__(self, config: AudioVAEConfig, *, operations: Operations, **factory: Any):
        widths = config.decoder_widths or config.widths
        super().__init__(
            operations.Conv1d(config.latent_channels, widths[-1], 7, padding=3, **factory),
            *(DecoderBlock(widths[i + 1], widths[i], config.strides[i], operations=operations, **factory)
              for i in reversed(range(len(config.strides)))),
            Snake(widths[0], **factory),
            operations.Conv1d(widths[0], config.audio_channels, 7, padding=3, bias=False, **factory),
        )


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """On CUDA fp32 convolutions compute in TF32, with 10 bits after the point, unless told otherwise: audible here."""
    # The newer of PyTorch's two switches where there is one, for it refuses to read the older when both were used.
    switch: Any = torch.backends.cudnn
    name: str = "allow_tf32"
    exact: object = False
    if hasattr(switch, "conv"):
        switch, name, exact = switch.conv, "fp32_precision", "ieee"
    before = getattr(switch, name)
    setattr(switch, name, exact)
    try:
        yield
    finally:
        setattr(switch, name, before)


class AudioVAE(nn.Module):
    """Encoder and decoder between waveforms at 51.2 kHz and 25 latents a second.

    operations: what makes the convolutions (see nn.operations).
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, config: AudioVAEConfig | None = None, *, operations: Operations = nn,
                 dtype: torch.dtype | None = None, device: torch.device | str | None = None):
        super().__init__()
        self.config = config or AudioVAEConfig()
        self.encoder = OobleckEncoder(self.config, operations=operations, dtype=dtype, device=device)
        self.decoder = OobleckDecoder(self.config, operations=operations, dtype=dtype, device=device)

    @property
    def hop(self) -> int:
        """Samples per latent."""
        return self.config.hop

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in."""
        return next(self.encoder.layers[1].parameters()).dtype  # of a snake: no operations ever change it

    @exact_convolutions()
    def posterior(self, waveform: Tensor, tile: int = TILE, silence: int = 0) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latent of [B, audio_channels, L], each [B, c, config.latents(L)].

        silence: samples of it that follow the waveform, as if they were a part of it.
        Runs over tile latents at a time, each tile with as much audio around it as the network can see:
        the result is that of one pass, in memory that does not grow with L.
        Raises InputError for a wrong shape or audio shorter than one latent.
        """
        self._check(waveform, self.config.audio_channels, "waveform", "samples")
        length = waveform.shape[-1] + silence
        count = self.config.latents(length)
        if count == 0:
            raise InputError(f"waveform has {waveform.shape[-1]} samples, less than the {self.hop} of one "
                             "latent; give more audio, or use encode_long, which pads.")
        waveform = waveform.to(self.dtype)
        before, after = encoder_context(self.config)
        parts = []
        for start in range(0, count, tile):
            end = min(start + tile, count)
            left = max(start - before, 0)
            # Up to the very end, not to the last whole latent, where the network sees the true end.
            right = (end + after) * self.hop if end + after < count else length
            part = waveform[..., left * self.hop:right]
            part = self.encoder(F.pad(part, (0, right - left * self.hop - part.shape[-1])))
            parts.append(part[..., start - left:end - left])
        mean, scale = torch.cat(parts, dim=-1).chunk(2, dim=1)
        return mean, F.softplus(scale) + 1e-4

    def encode(self, waveform: Tensor, tile: int = TILE) -> Tensor:
        """Waveform [B, audio_channels, L] at 51.2 kHz -> mean latent [B, latent_channels, config.latents(L)].

        One pass over the whole audio, as it is: with even strides, as released, that is L // hop latents, and a
        last stretch shorter than hop gives none of its own.
        For audio of any length from outside use encode_long, which pads.
        """
        return self.posterior(waveform, tile)[0]

    def encode_long(self, waveform: Tensor) -> Tensor:
        """Waveform [B, audio_channels, L] of any length -> mean latent [B, latent_channels, ceil(L / hop)].

        Padded with zeros at the end, so nothing is lost, and in one pass, so in step with the video to the end:
        the windows in which the model was trained to hear long audio (audio_windows.py) move by half a latent each.
        """
        return self.posterior(waveform, silence=-waveform.shape[-1] % self.hop)[0]

    @exact_convolutions()
    def decode(self, latent: Tensor, tile: int = TILE) -> Tensor:
        """Latent [B, latent_channels, n] -> waveform [B, audio_channels, n * hop] at 51.2 kHz, not clamped.

        Runs over tile latents at a time with the context the network can see: the result is that of one
        pass, in memory that does not grow with n (but for the waveform itself).
        """
        self._check(latent, self.config.latent_channels, "latent", "latents")
        latent = latent.to(self.dtype)
        count = latent.shape[-1]
        if count <= tile or any(stride % 2 for stride in self.config.strides):
            # Odd strides make the transposed convolutions end short, so tiles would not line up.
            return self.decoder(latent)
        before, after = decoder_context(self.config)
        parts = []
        for start in range(0, count, tile):
            end, left = min(start + tile, count), max(start - before, 0)
            part = self.decoder(latent[..., left:end + after])
            parts.append(part[..., (start - left) * self.hop:(end - left) * self.hop])
        return torch.cat(parts, dim=-1)

    def _check(self, x: Tensor, channels: int, name: str, unit: str) -> None:
        if x.ndim != 3 or x.shape[1] != channels or x.shape[2] == 0 or not x.is_floating_point():
            raise InputError(f"{name} must be floating, of shape [batch, {channels}, {unit}], got {x.dtype} "
                             f"of shape {list(x.shape)}.")


def encoder_context(config: AudioVAEConfig) -> tuple[int, int]:
    """How many latents' worth of audio before and after its own a latent depends on."""
    reach = sum(3 * dilation for dilation in DILATIONS)
    low, high = -1, 1                                        # the last convolution, kernel 3
    for stride in reversed(config.strides):
        padding = ceil(stride / 2)
        low = low * stride - padding - reach
        high = high * stride - padding + 2 * stride - 1 + reach
    low, high = low - 3, high + 3                            # the first convolution, kernel 7
    return ceil(-low / config.hop), max(0, ceil((high - config.hop + 1) / config.hop))


def decoder_context(config: AudioVAEConfig) -> tuple[int, int]:
    """How many latents before and after its own the hop samples of a latent depend on."""
    reach = sum(3 * dilation for dilation in DILATIONS)
    low, high = -3, config.hop - 1 + 3                       # the last convolution, kernel 7
    for stride in config.strides:
        padding = ceil(stride / 2)
        low = ceil((low - reach + padding - 2 * stride + 1) / stride)
        high = (high + reach + padding) // stride
    return 3 - low, high + 3                                 # the first convolution, kernel 7
