"""How latents on ComfyUI's sockets differ from those inside of the network, and what previews show of them."""

import logging
import math
from collections.abc import Mapping

import comfy.latent_formats
import torch
from torch import Tensor

from ...magihuman_core.checkpoint.json_file import read_json
from ...magihuman_core.sizes import decoded_frames
from .streams import check_filled, nested

Preview = tuple[list[list[float]], list[float]]  # factors [channels][3], bias [3]: to RGB in -1..1


class LatentFormat(comfy.latent_formats.Wan22):
    """Raw Wan2.2 latents on sockets, normalized ones in the network; audio latents are the same in both."""

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, video_channels: int = 48, audio_channels: int = 64, preview: Preview | None = None):
        super().__init__()
        self.channels = (video_channels, audio_channels)
        # The wider stream's: core's step cache slices both streams to this many channels.
        self.latent_channels = max(self.channels)
        if video_channels != self.latents_mean.shape[1]:  # a small network of its own: nothing to normalize by
            self.latents_mean = torch.zeros(1, video_channels, 1, 1, 1)
            self.latents_std = torch.ones(1, video_channels, 1, 1, 1)
            self.latent_rgb_factors = None
        if preview is not None:  # of a small model with autoencoders of its own
            self.latent_rgb_factors, self.latent_rgb_factors_bias = preview
        # Instead of core's previews, which always show frame 0: with a reference image that never changes.
        self.latent_rgb_factors_reshape = middle_frame

    def fix_empty_latent(self, latent: Tensor):
        """Give an empty video latent [B, C, T, H, W] of another node its audio, so that any such node starts a clip."""
        return self.with_empty_audio(latent[:, : self.channels[0]].clone())

    def with_empty_audio(self, video: Tensor):
        """A video latent [B, C, T, H, W] with as much empty audio as goes with it. Raises InputError for no frames."""
        check_filled([tuple(video.shape)])
        return nested(video, video.new_zeros(video.shape[0], self.channels[1], decoded_frames(video.shape[2])))


def preview_in(metadata: Mapping[str, str], video_channels: int) -> Preview | None:
    """How previews get their colours, where a file's metadata says so ("preview"); None: as with Wan2.2's latents."""
    if "preview" not in metadata:
        return None
    try:
        found = read_json(metadata["preview"])
        factors = [[float(value) for value in row] for row in found["factors"]]
        bias = [float(value) for value in found["bias"]]
        if [len(row) for row in [*factors, bias]] != [3] * (video_channels + 1):
            raise ValueError(f"expected {video_channels} rows of factors and a bias, of 3 numbers each")
        if not all(math.isfinite(value) for row in [*factors, bias] for value in row):
            raise ValueError("a number is not finite")
    except (ValueError, TypeError, KeyError) as error:
        logging.getLogger(__name__).warning("The file's preview colors are not used: %s", error)
        return None
    return factors, bias


def middle_frame(x0: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B, C, 1, H, W], from the middle of the clip."""
    return x0[:, :, x0.shape[2] // 2 :][:, :, :1] if x0.ndim == 5 else x0
