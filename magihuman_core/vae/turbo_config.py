"""Sizes of a Turbo VAE decoder: from its JSON file, or from the shapes of its weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import CheckpointError, shown

MAX_LAYERS, MAX_WIDTH = 64, 65_536  # of one block; the released network has 3, and 512 channels


@dataclass(frozen=True)
class TurboVAEConfig:
    """Field names and order of the lists as in the official JSON: from the image towards the latent.

    Decoding runs through every list backwards. The defaults are the released network.
    """

    latent_channels: int = 48
    out_channels: int = 3
    patch_size: int = 2
    decoder_block_out_channels: tuple[int, ...] = (64, 128, 256, 512)
    decoder_layers_per_block: tuple[int, ...] = (2, 2, 2, 3, 3)
    decoder_spatio_temporal_scaling: tuple[bool, ...] = (False, True, True, True)
    decoder_spatio_only: tuple[bool, ...] = (False, True, False, False)
    decoder_is_dw_conv: tuple[bool, ...] = (False, False, False, False, False)
    decoder_dw_kernel_size: int = 5
    resnet_norm_eps: float = 1e-6
    use_unpatchify: bool = True
    first_chunk_size: int = 7
    step_size: int = 7

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent pixel along one axis."""
        return self.patch_size * 2 ** sum(self.decoder_spatio_temporal_scaling)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame, of which the first latent frame of a clip gives one only."""
        doubled = zip(self.decoder_spatio_temporal_scaling, self.decoder_spatio_only, strict=True)
        return 2 ** sum(scaling and not spatio_only for scaling, spatio_only in doubled)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], name: str = "the Turbo VAE configuration") -> "TurboVAEConfig":
        """Read the official JSON's content. Fields that only concern training are ignored.

        Raises CheckpointError, with `name`, when a field has the wrong type or the lists do not fit.
        """
        values = {f.name: _typed(mapping[f.name], f.default, f.name, name) for f in fields(cls) if f.name in mapping}
        config = cls(**values)
        blocks = len(config.decoder_block_out_channels)
        lengths = {"decoder_layers_per_block": blocks + 1, "decoder_spatio_temporal_scaling": blocks,
                   "decoder_spatio_only": blocks, "decoder_is_dw_conv": blocks + 1}
        for field, length in lengths.items():
            if len(getattr(config, field)) != length:
                raise CheckpointError(f"{name}: {field} has {len(getattr(config, field))} entries, expected"
                                      f" {length} for {blocks} blocks. Use the JSON that belongs to it.")
        if max(blocks, *config.decoder_layers_per_block) > MAX_LAYERS or max(
                *config.decoder_block_out_channels, config.latent_channels, config.out_channels, config.patch_size,
                config.decoder_dw_kernel_size, config.first_chunk_size, config.step_size) > MAX_WIDTH:
            raise CheckpointError(f"{name}: asks for more layers or channels than any Turbo VAE has. Use the JSON that "
                                  "belongs to the weights.")
        if mapping.get("patch_size_t", 1) != 1:
            raise CheckpointError(f"{name}: patch_size_t is {mapping['patch_size_t']}, only 1 is supported."
                                  " Use the JSON of a released Turbo VAE.")
        if not config.use_unpatchify and config.patch_size != 2:
            raise CheckpointError(f"{name}: without use_unpatchify patch_size must be 2, not"
                                  f" {config.patch_size}. Use the JSON of a released Turbo VAE.")
        if config.first_chunk_size < 1 or config.step_size < 1 or config.decoder_dw_kernel_size % 2 == 0:
            raise CheckpointError(f"{name}: first_chunk_size and step_size must be at least 1 and"
                                  " decoder_dw_kernel_size odd. Use the JSON of a released Turbo VAE.")
        return config

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], name: str) -> "TurboVAEConfig":
        """Infer everything that shapes tell; the window sizes and the eps stay those of the release.

        shapes: of weights, by keys `decoder.*`. Raises CheckpointError when it is not a Turbo VAE decoder.
        """
        def shape(key: str) -> tuple[int, ...]:
            if key not in shapes:
                raise CheckpointError(f"{name}: is not a Turbo VAE decoder: it has no tensor {key}."
                                      " Choose the Turbo VAE's checkpoint, not the full Wan2.2 VAE.")
            return shapes[key]

        conv_in, conv_out = shape("decoder.conv_in.conv.weight"), shape("decoder.conv_out.conv.weight")
        unpatchify = "decoder.upsampler2d_1.conv.weight" not in shapes
        patch = round((conv_out[0] / 3) ** 0.5) if unpatchify else 2
        resnets: dict[str, set[str]] = {}  # "mid_block", "up_blocks.0", ... -> numbers of its resnets
        for key in shapes:
            if match := re.match(r"decoder\.(mid_block|up_blocks\.\d+)\.resnets\.(\d+)\.", key):
                resnets.setdefault(match[1], set()).add(match[2])
        names = ["mid_block", *(f"up_blocks.{i}" for i in range(len(resnets.keys() - {"mid_block"})))]
        channels, depthwise, scaling, spatio_only, kernel = [], [], [], [], cls.decoder_dw_kernel_size
        for stem in (f"decoder.{block}" for block in names):
            first = f"{stem}.resnets.0.conv1"
            depthwise.append(f"{first}.depthwise_conv.weight" in shapes)
            if depthwise[-1]:
                kernel = shape(f"{first}.depthwise_conv.weight")[-1]
            channels.append(shape(f"{first}.{'pointwise_conv' if depthwise[-1] else 'conv'}.weight")[0])
            scaling.append(f"{stem}.upsamplers.0.resample.1.weight" in shapes)
            spatio_only.append(scaling[-1] and f"{stem}.upsamplers.0.time_conv.conv.weight" not in shapes)
        return cls(
            latent_channels=conv_in[1],
            out_channels=conv_out[0] // patch**2 if unpatchify else conv_out[0],
            patch_size=patch,
            decoder_block_out_channels=tuple(channels[:0:-1]),  # without the middle block's
            decoder_layers_per_block=tuple(len(resnets.get(block, ())) for block in reversed(names)),
            decoder_spatio_temporal_scaling=tuple(scaling[:0:-1]),
            decoder_spatio_only=tuple(spatio_only[:0:-1]),
            decoder_is_dw_conv=tuple(depthwise[::-1]),
            decoder_dw_kernel_size=kernel,
            use_unpatchify=unpatchify,
        )


def _typed(value: Any, example: Any, field: str, name: str) -> Any:
    """value with the type of example (sequences become tuples), or CheckpointError."""
    if isinstance(example, tuple):
        if isinstance(value, (list, tuple)) and value:
            return tuple(_typed(item, example[0], field, name) for item in value)
    elif isinstance(example, bool) or isinstance(value, bool):
        if isinstance(example, bool) and isinstance(value, bool):
            return value
    elif isinstance(example, float) and isinstance(value, (int, float)):
        return float(value)
    elif isinstance(value, int) and value > 0:
        return value
    raise CheckpointError(f"{name}: {field} is {shown(value)}, expected something like {example}."
                          " Use the JSON that belongs to the weights.")
