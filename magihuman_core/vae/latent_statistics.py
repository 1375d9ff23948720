"""Per-channel mean and standard deviation of the video latent.

Networks see normalized latents, (raw - mean) / std; ComfyUI's sockets carry raw ones. Both video
decoders and the encoder share the constants below, published with the Wan2.2 VAE.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CheckpointError

LATENT_MEAN = (-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
               0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
               -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
               -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667)
LATENT_STD = (0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885,
              0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338,
              0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458,
              1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744)
MEAN_KEY, STD_KEY = "latent_mean", "latent_std"


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and std per channel, kept as plain numbers so that no cast of a network ever rounds them."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def for_channels(cls, channels: int) -> "LatentStatistics":
        """The published constants for 48 channels; 0 and 1 for any other (small) network."""
        if channels == len(LATENT_MEAN):
            return cls(LATENT_MEAN, LATENT_STD)
        return cls((0.0,) * channels, (1.0,) * channels)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], channels: int, name: str) -> "LatentStatistics":
        """Those among the tensors of a VAE, `latent_mean` and `latent_std`, else for_channels(channels).

        Raises CheckpointError, with `name`, where these are not `channels` numbers each.
        """
        if MEAN_KEY not in tensors and STD_KEY not in tensors:
            return cls.for_channels(channels)
        values = [tensors[key].double().flatten().tolist() if key in tensors else [] for key in (MEAN_KEY, STD_KEY)]
        if any(len(v) != channels for v in values) or min(values[1]) <= 0:
            raise CheckpointError(f"{name}: latent_mean and latent_std must both hold {channels} numbers, the latter "
                                  "above 0. Use a complete file.")
        return cls(tuple(values[0]), tuple(values[1]))

    def tensors(self) -> dict[str, Tensor]:
        """What `from_tensors` reads back; nothing where for_channels gives the same."""
        if self == self.for_channels(len(self.mean)):
            return {}
        return {MEAN_KEY: torch.tensor(self.mean), STD_KEY: torch.tensor(self.std)}

    def normalize(self, raw: Tensor) -> Tensor:
        """(raw - mean) / std for raw [B, C, T, H, W], computed in fp32 and given back in raw's dtype."""
        mean, std = self._tensors(raw)
        return ((raw.float() - mean) / std).to(raw.dtype)

    def denormalize(self, latent: Tensor) -> Tensor:
        """latent * std + mean for latent [B, C, T, H, W], computed in fp32 and given back in its dtype."""
        mean, std = self._tensors(latent)
        return (latent.float() * std + mean).to(latent.dtype)

    def _tensors(self, like: Tensor) -> list[Tensor]:
        return [torch.tensor(v, dtype=torch.float32, device=like.device).view(1, -1, 1, 1, 1)
                for v in (self.mean, self.std)]
