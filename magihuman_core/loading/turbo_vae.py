"""Loading a Turbo VAE, with the JSON beside it that holds its sizes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint.assign import assign_weights
from ..checkpoint.checkpoint import renamed
from ..checkpoint.json_file import read_json_object
from ..errors import CheckpointError
from ..nn.operations import Operations
from ..vae.latent_statistics import LatentStatistics
from ..vae.turbo import TurboVAE
from ..vae.turbo_config import TurboVAEConfig
from ..weights.open import open_checkpoint
from ..weights.recognize import explain_shape_errors

PARTS = ("conv_in.", "mid_block.", "up_blocks.", "upsampler2d_1.", "conv_out.")  # of the decoder, in its keys


def load_turbo_vae(source: str | Path | Mapping[str, Any], config: Mapping[str, Any] | str | Path | None = None, *,
                   dtype: torch.dtype | None = None, device: torch.device | str = "cpu",
                   operations: Operations = nn) -> TurboVAE:
    """Load a Turbo VAE decoder of any size.

    source: the training checkpoint (its `ema_state_dict` is taken), a safetensors file, a folder that holds
    either, or a mapping of tensors. config: the official JSON, as a mapping or a path; without it the JSON
    beside the file is read, or else sizes are inferred from shapes. dtype None keeps that of the file.
    Raises CheckpointError when the file is not a Turbo VAE or does not fit the configuration.
    """
    if isinstance(source, Mapping) and isinstance(source.get("ema_state_dict"), Mapping):
        source = source["ema_state_dict"]
    checkpoint = open_checkpoint(source, "turbo_vae", allow_pickle_checkpoint=True)
    tensors = renamed(checkpoint, _decoder_key)
    sizes = None
    if config is not None:
        sizes = _read_config(config)
    elif not isinstance(source, Mapping):
        sizes = _find_config(Path(source))
    with explain_shape_errors(checkpoint.name, "turbo_vae"), torch.device("meta"):
        if sizes is None:
            shapes = {key: tensors.shape(key) for key in tensors}
            sizes = TurboVAEConfig.from_shapes(shapes, checkpoint.name)
        vae = TurboVAE(sizes, operations=operations)
    vae.statistics = LatentStatistics.from_tensors(checkpoint, sizes.latent_channels, checkpoint.name)
    assign_weights(vae, tensors, dtype=dtype, device=device, name=checkpoint.name)
    return vae


def _decoder_key(key: str) -> str | None:
    """The module's name for a checkpoint's key; None for what only training needs."""
    key = key.removeprefix("module.")
    if "aligned" in key or not key.startswith(tuple("decoder." + part for part in PARTS)):
        return None
    return key


def _read_config(config: Mapping[str, Any] | str | Path) -> TurboVAEConfig:
    """The configuration given as a mapping or as a JSON file. Raises CheckpointError."""
    if isinstance(config, Mapping):
        return TurboVAEConfig.from_mapping(config)
    content = read_json_object(Path(config))
    if content is None:
        raise CheckpointError(f"{config}: is not a readable JSON file with the Turbo VAE's configuration."
                              " Give the JSON that came with the weights, or none.")
    return TurboVAEConfig.from_mapping(content, str(config))


def _find_config(source: Path) -> TurboVAEConfig | None:
    """The JSON beside a checkpoint file, or in its folder, that describes a Turbo VAE.

    One with the file's own name is preferred; of several others none is taken, for nothing tells which.
    """
    folder = source if source.is_dir() else source.parent
    own = source.with_suffix(".json")
    found = {path: content for path in sorted(folder.glob("*.json"))
             if (content := read_json_object(path)) is not None and "decoder_block_out_channels" in content}
    if own in found:
        return TurboVAEConfig.from_mapping(found[own], str(own))
    if len(found) == 1:
        path, content = found.popitem()
        return TurboVAEConfig.from_mapping(content, str(path))
    return None
