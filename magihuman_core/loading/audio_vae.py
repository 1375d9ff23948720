"""Loading an audio VAE from a file of Stable Audio Open's layout."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint.assign import assign_weights
from ..nn.operations import Operations
from ..vae.audio import AudioVAE, AudioVAEConfig
from ..weights.audio_keys import folded, official_keys
from ..weights.open import open_checkpoint
from ..weights.recognize import explain_shape_errors


def load_audio_vae(source: str | Path | Mapping[str, Tensor], *, dtype: torch.dtype | None = torch.float32,
                   device: torch.device | str = "cpu", operations: Operations = nn) -> AudioVAE:
    """Load an Oobleck audio VAE of any width.

    source: file, folder, index file, or mapping of tensors: Stable Audio Open's whole checkpoint
    (`pretransform.model.*`) or the VAE alone. float32 is the default because bfloat16 is audible.
    Raises CheckpointError when source holds no complete audio VAE.
    """
    checkpoint = folded(official_keys(open_checkpoint(source, "audio_vae")))
    with explain_shape_errors(checkpoint.name, "audio_vae"), torch.device("meta"):
        shapes = {key: checkpoint.shape(key) for key in checkpoint}
        vae = AudioVAE(AudioVAEConfig.from_shapes(shapes, checkpoint.name), operations=operations)
    assign_weights(vae, checkpoint, dtype=dtype, device=device, name=checkpoint.name)
    return vae.eval()
