"""Loading a Wan2.2-type video VAE."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint.assign import assign_weights
from ..checkpoint.checkpoint import renamed
from ..errors import CheckpointError, InputError
from ..nn.operations import Operations
from ..vae.latent_statistics import MEAN_KEY, STD_KEY, LatentStatistics
from ..vae.video import VideoVAE, VideoVAEConfig
from ..weights.open import open_checkpoint
from ..weights.recognize import explain_shape_errors


def load_video_vae(source: str | Path | Mapping[str, Tensor], *, dtype: torch.dtype | None = None,
                   device: torch.device | str = "cpu", operations: Operations = nn) -> VideoVAE:
    """Load a Wan2.2-type VAE of any size, which is inferred from the shapes of its weights.

    source: a safetensors file with the original key names (ComfyUI's wan2.2_vae.safetensors), a folder that holds one,
    or a mapping of tensors. dtype None keeps that of the file. Raises CheckpointError when the file is something else.
    """
    checkpoint = open_checkpoint(source, "video_vae")
    shapes = {key: checkpoint.shape(key) for key in checkpoint}
    try:
        with explain_shape_errors(checkpoint.name, "video_vae"), torch.device("meta"):
            config = VideoVAEConfig.from_shapes(shapes, checkpoint.name)
            vae = VideoVAE(config, operations=operations)
    except InputError as error:
        raise CheckpointError(f"{checkpoint.name}: is not a Wan2.2-type video VAE. {error}") from None
    vae.statistics = LatentStatistics.from_tensors(checkpoint, config.latent_channels, checkpoint.name)
    weights = renamed(checkpoint, lambda key: None if key in (MEAN_KEY, STD_KEY) else key)
    assign_weights(vae, weights, dtype=dtype, device=device, name=checkpoint.name)
    return vae
