"""The Wan2.2 video VAE: frames [B, 3, F, h, w] to latents [B, 48, 1 + (F-1)//4, h/16, w/16] and back.

Causal in time: the first frame alone makes the first latent, every further four frames one more. Clips
are encoded in these groups and decoded latent by latent, with what the layers remember in between, so
memory is flat in the clip's length.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, InputError
from ..nn.operations import Operations
from .latent_statistics import LatentStatistics
from .layers import channels_to_pixels, pixels_to_channels
from .tiling import OVERLAP, EachTile, decode_in_tiles, home_of, joined_frames
from .video_blocks import AttentionBlock, DownStage, ResidualBlock, RMSNorm, State, UpStage, causal, conv3d

TILED_LENGTH = 64  # latent frames of a tile that are decoded before the next tile is: about 10 s


@dataclass(frozen=True)
class VideoVAEConfig:
    """Widths are dim times multipliers, from the image towards the latent. Defaults: the released VAE."""

    encoder_dim: int = 160
    decoder_dim: int = 256
    latent_channels: int = 48
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    temporal: tuple[bool, ...] = (False, True, True)
    patch: int = 2

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent pixel along one axis."""
        return self.patch * 2 ** len(self.temporal)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame after the first."""
        return 2 ** sum(self.temporal)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], name: str) -> "VideoVAEConfig":
        """Infer every size from the shapes of weights. Raises CheckpointError when it is not a Wan2.2-type VAE."""
        def shape(key: str) -> tuple[int, ...]:
            if key not in shapes:
                raise CheckpointError(f"{name}: is not a Wan2.2-type video VAE: it has no tensor {key}."
                                      " Choose the VAE of Wan2.2 (48 channels) with its original key names.")
            return shapes[key]

        def ratio(width: int, dim: int) -> int:
            if dim < 1 or width % dim:
                raise CheckpointError(f"{name}: a width of {width} is not a multiple of {dim}, so this is not a"
                                      " Wan2.2-type video VAE. Choose another file.")
            return width // dim

        encoder_dim, pixels = shape("encoder.conv1.weight")[:2]
        numbers = (re.match(r"encoder\.downsamples\.(\d+)\.downsamples\.", key) for key in shapes)
        stages = len({match[1] for match in numbers if match})
        widths = [shape(f"encoder.downsamples.{i}.downsamples.0.residual.2.weight")[0] for i in range(stages)]
        multipliers = tuple(ratio(width, encoder_dim) for width in widths)
        pattern = re.compile(r"encoder\.downsamples\.0\.downsamples\.\d+\.residual\.2\.weight")
        blocks = sum(bool(pattern.fullmatch(key)) for key in shapes)
        temporal = tuple(f"encoder.downsamples.{i}.downsamples.{blocks}.time_conv.weight" in shapes
                         for i in range(stages - 1))
        shape("decoder.upsamples.0.upsamples.0.residual.2.weight")
        return cls(encoder_dim, ratio(shape("decoder.head.0.gamma")[0], (multipliers or (1,))[0]),
                   shape("conv2.weight")[0], multipliers, blocks, temporal, round((pixels / 3) ** 0.5))


class Encoder(nn.Module):
    """Patches of pixels [B, 12, F, h/2, w/2] -> twice the latent's channels (mean and log variance)."""

    def __init__(self, config: VideoVAEConfig, **factory: Any) -> None:
        super().__init__()
        widths = [config.encoder_dim * m for m in config.multipliers]
        stages = zip([config.encoder_dim, *widths], widths, [*config.temporal, False], strict=False)
        self.conv1 = conv3d(3 * config.patch**2, config.encoder_dim, **factory)
        self.downsamples = nn.ModuleList(
            DownStage(inputs, outputs, config.blocks, last=i == len(widths) - 1, temporal=temporal, **factory)
            for i, (inputs, outputs, temporal) in enumerate(stages))
        self.middle = _middle(widths[-1], **factory)
        self.head = _head(widths[-1], 2 * config.latent_channels, **factory)

    def forward(self, x: Tensor, state: State = None) -> Tensor:
        x = causal(self.conv1, x, state)
        for layer in (*self.downsamples, *self.middle):
            x = layer(x, state)
        return causal(self.head["2"], x, state, cast(RMSNorm, self.head["0"]).silu)


class Decoder(nn.Module):
    """Raw latents (after conv2) -> patches of pixels [B, 12, F, h/2, w/2]."""

    def __init__(self, config: VideoVAEConfig, **factory: Any) -> None:
        super().__init__()
        widths = [config.decoder_dim * m for m in reversed(config.multipliers)]
        stages = zip([widths[0], *widths], widths, [*reversed(config.temporal), False], strict=False)
        self.conv1 = conv3d(config.latent_channels, widths[0], **factory)
        self.middle = _middle(widths[0], **factory)
        self.upsamples = nn.ModuleList(
            UpStage(inputs, outputs, config.blocks + 1, last=i == len(widths) - 1, temporal=temporal, **factory)
            for i, (inputs, outputs, temporal) in enumerate(stages))
        self.head = _head(widths[-1], 3 * config.patch**2, **factory)

    def forward(self, x: Tensor, state: State = None) -> Tensor:
        first = not state  # nothing remembered: x begins a clip
        x = causal(self.conv1, x, state)
        for layer in self.middle:
            x = layer(x, state)
        for stage in self.upsamples:
            x = stage(x, state, first)
        return causal(self.head["2"], x, state, cast(RMSNorm, self.head["0"]).silu)


class VideoVAE(nn.Module):
    """Encoder and decoder with the latent statistics, the clip-by-piece schedule and the public checks."""

    def __init__(self, config: VideoVAEConfig | None = None, *, operations: Operations = nn, dtype=None,
                 device=None) -> None:
        super().__init__()
        self.config = config = config or VideoVAEConfig()
        self.statistics = LatentStatistics.for_channels(config.latent_channels)
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        channels = config.latent_channels
        self.encoder = Encoder(config, operations=operations, **factory)
        self.conv1 = operations.Conv3d(2 * channels, 2 * channels, 1, **factory)
        self.conv2 = operations.Conv3d(channels, channels, 1, **factory)
        self.decoder = Decoder(config, operations=operations, **factory)

    def moments(self, video: Tensor, state: State = None) -> tuple[Tensor, Tensor]:
        """Raw mean and log variance of frames [B, 3, F, h, w] in one piece, each [B, C, T, h/16, w/16].

        With state None the frames are a whole clip of 1 + 4n frames, as for training.
        """
        patches = pixels_to_channels(video, self.config.patch)
        return self.conv1(self.encoder(patches, state)).chunk(2, dim=1)

    def frames(self, z: Tensor, state: State = None) -> Tensor:
        """Raw latents in one piece -> frames, not clamped. State None: a whole clip, as for training."""
        return channels_to_pixels(self.decoder(self.conv2(z), state), self.config.patch)

    def encode(self, video: Tensor, *, normalized: bool = True, device: torch.device | str | None = None) -> Tensor:
        """Frames [B, 3, F, h, w] in [-1, 1] -> the mean of their latents [B, C, 1 + (F-1)//4, h/16, w/16].

        Nothing is sampled. Frames beyond the last whole group of four are dropped, as ComfyUI does.
        normalized: give normalized latents (as the Transformer has them) or raw ones (as ComfyUI's sockets).
        device: where the network is, if the frames wait elsewhere; they are brought there a few at a time.
        Raises InputError for another number of dimensions or channels, no frame, or sizes that 16 does not divide.
        """
        group, factor = self.config.temporal_factor, self.config.spatial_factor
        shape = list(video.shape)
        if video.ndim != 5 or shape[1] != 3 or 0 in shape:
            raise InputError(f"The video has shape {shape}, expected [B, 3, F, height, width] with"
                             " at least one frame. Give RGB frames.")
        if shape[3] % factor or shape[4] % factor:
            raise InputError(f"The frames are {shape[4]}x{shape[3]} pixels, but width and height must be"
                             f" multiples of {factor}. Resize or crop them.")
        state: State = {}
        latents = []
        for start in [0, *range(1, shape[2] - group + 1, group)]:
            piece = video[:, :, start : start + (group if start else 1)]
            latents.append(self.moments(piece.to(device or piece.device, self.dtype), state)[0].to(video.dtype))
        raw = torch.cat(latents, dim=2)
        return self.statistics.normalize(raw) if normalized else raw

    def decode(self, z: Tensor, *, normalized: bool = True, tile: int | None = None, overlap: int = OVERLAP,
               output_device: torch.device | str | None = None) -> Tensor:
        """Latents [B, C, T, H, W] -> frames [B, 3, 4T-3, 16H, 16W] clamped to [-1, 1], in the dtype of z.

        normalized: whether z is normalized or raw. tile, overlap: in latent pixels; decode images larger than `tile`
        in tiles with blended seams, and put them together in main memory. output_device: where the frames are put
        together, so that z's device need not hold the clip; None: z's, or with tiles main memory.
        Raises InputError when z has another shape.
        """
        self.check_latent(z)
        windows = self.decode_windows(z, normalized=normalized, tile=tile, overlap=overlap)
        return joined_frames(windows, 1 + self.config.temporal_factor * (z.shape[2] - 1), output_device)

    def decode_windows(self, z: Tensor, *, normalized: bool = True, tile: int | None = None, overlap: int = OVERLAP,
                       each: EachTile = map) -> Iterator[Tensor]:
        """The same frames in pieces, one for each latent frame: 1 frame, then 4 each time; with a tile TILED_LENGTH.

        A tile is decoded for so long before the next one is, since what its layers remember has to wait in main
        memory meanwhile, and is larger than the frames of a short clip. each: see decode_in_tiles; a tile has to stay
        with who decoded its beginning.
        """
        self.check_latent(z)
        if normalized:
            z = self.statistics.denormalize(z)
        if tile is None:
            yield from self._pieces(z, {})
            return
        waiting: dict[tuple[int, int], dict[nn.Module, Tensor]] = {}
        parts = z.split(TILED_LENGTH, dim=2)
        for number, part in enumerate(parts, 1):

            def decode(x: Tensor, corner: tuple[int, int], last: bool = number == len(parts)) -> Iterator[Tensor]:
                state = {layer: past.to(x.device) for layer, past in waiting.pop(corner, {}).items()}
                yield from self._pieces(x, state)
                if not last:
                    waiting[corner] = {layer: past.to(home_of(x)) for layer, past in state.items()}

            yield decode_in_tiles(decode, part, tile, overlap, self.config.spatial_factor, each)

    def _pieces(self, z: Tensor, state: State) -> Iterator[Tensor]:
        """The frames of raw latents that follow those that state is of."""
        for piece in z.split(1, dim=2):
            yield self.frames(piece.to(self.dtype), state).clamp(-1, 1).to(z.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in."""
        return next(self.conv1.parameters()).dtype

    def check_latent(self, z: Tensor) -> None:
        if z.ndim != 5 or z.shape[1] != self.config.latent_channels or 0 in z.shape:
            raise InputError(f"The latent has shape {list(z.shape)}, but this video VAE decodes"
                             f" [B, {self.config.latent_channels}, T, H, W]. Give a latent of its kind.")


def _middle(channels: int, **factory: Any) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(channels, channels, **factory), AttentionBlock(channels, **factory),
                          ResidualBlock(channels, channels, **factory)])


def _head(inputs: int, outputs: int, *, operations: Operations, **factory: Any) -> nn.ModuleDict:
    """norm, SiLU (number 1 in the checkpoint, without weights), conv."""
    return nn.ModuleDict({"0": RMSNorm(inputs, 3, **factory),
                          "2": conv3d(inputs, outputs, operations=operations, **factory)})
