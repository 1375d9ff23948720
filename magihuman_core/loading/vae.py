"""From files to the autoencoders: the Wan2.2-type video VAE, the Turbo VAE and Stable Audio Open's audio VAE."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..checkpoint.assign import assign_weights
from ..checkpoint.checkpoint import Checkpoint, renamed
from ..checkpoint.json_file import read_json_object
from ..checkpoint.weight_files import is_folder
from ..errors import CheckpointError, InputError
from ..nn.operations import Operations
from ..vae.audio import AudioVAE, AudioVAEConfig
from ..vae.latent_statistics import MEAN_KEY, STD_KEY, LatentStatistics
from ..vae.turbo import TurboVAE
from ..vae.turbo_config import TurboVAEConfig
from ..vae.video import VideoVAE, VideoVAEConfig
from ..weights.audio_keys import folded, official_keys
from ..weights.open import open_checkpoint
from ..weights.recognize import explain_shape_errors

TURBO_PARTS = tuple(f"decoder.{part}." for part in ("conv_in", "mid_block", "up_blocks", "upsampler2d_1", "conv_out"))

VAE = TypeVar("VAE", VideoVAE, TurboVAE, AudioVAE)
Shapes = Mapping[str, tuple[int, ...]]


def load_video_vae(source: str | Path | Mapping[str, Tensor], *, dtype: torch.dtype | None = None,
                   device: torch.device | str = "cpu", operations: Operations = nn) -> VideoVAE:
    """Load a Wan2.2-type VAE of any size, which is inferred from the shapes of its weights.

    source: a safetensors file with the original key names (ComfyUI's wan2.2_vae.safetensors), a folder that holds one,
    or a mapping of tensors. dtype None keeps that of the file. Raises CheckpointError when the file is something else.
    """
    checkpoint = open_checkpoint(source, "video_vae")
    weights = renamed(checkpoint, lambda key: None if key in (MEAN_KEY, STD_KEY) else key)
    try:
        return _load(
            lambda shapes: VideoVAE(VideoVAEConfig.from_shapes(shapes, checkpoint.name), operations=operations),
            checkpoint, weights, "video_vae", dtype, device)
    except InputError as error:
        raise CheckpointError(f"{checkpoint.name}: is not a Wan2.2-type video VAE. {error}") from None


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
    sizes = None
    if config is not None:
        sizes = _read_turbo_config(config)
    elif not isinstance(source, Mapping):
        sizes = _find_turbo_config(Path(source))
    return _load(
        lambda shapes: TurboVAE(sizes or TurboVAEConfig.from_shapes(shapes, checkpoint.name), operations=operations),
        checkpoint, renamed(checkpoint, turbo_key), "turbo_vae", dtype, device)


def load_audio_vae(source: str | Path | Mapping[str, Tensor], *, dtype: torch.dtype | None = torch.float32,
                   device: torch.device | str = "cpu", operations: Operations = nn) -> AudioVAE:
    """Load an Oobleck audio VAE of any width.

    source: file, folder, index file, or mapping of tensors: Stable Audio Open's whole checkpoint
    (`pretransform.model.*`) or the VAE alone. float32 is the default because bfloat16 is audible.
    Raises CheckpointError when source holds no complete audio VAE.
    """
    checkpoint = open_checkpoint(source, "audio_vae")
    return _load(lambda shapes: AudioVAE(AudioVAEConfig.from_shapes(shapes, checkpoint.name), operations=operations),
                 checkpoint, folded(official_keys(checkpoint)), "audio_vae", dtype, device)


def _load(build: Callable[[Shapes], VAE], checkpoint: Checkpoint, weights: Checkpoint, kind: str,
          dtype: torch.dtype | None, device: torch.device | str) -> VAE:
    """The VAE that build makes for the shapes of its weights, filled with them and the checkpoint's statistics."""
    with explain_shape_errors(checkpoint.name, kind), torch.device("meta"):
        vae = build({key: weights.shape(key) for key in weights})
    if not isinstance(vae, AudioVAE):
        vae.statistics = LatentStatistics.from_tensors(checkpoint, vae.config.latent_channels, checkpoint.name)
    assign_weights(vae, weights, dtype=dtype, device=device)
    return vae.eval()


def turbo_key(key: str) -> str | None:
    """The module's name for a checkpoint's key; None for what only training needs."""
    key = key.removeprefix("module.")
    return key if key.startswith(TURBO_PARTS) and "aligned" not in key else None


def _read_turbo_config(config: Mapping[str, Any] | str | Path) -> TurboVAEConfig:
    """The configuration given as a mapping or as a JSON file. Raises CheckpointError."""
    if isinstance(config, Mapping):
        return TurboVAEConfig.from_mapping(config)
    content = read_json_object(Path(config))
    if content is None:
        raise CheckpointError(f"{config}: is not a readable JSON file with the Turbo VAE's configuration."
                              " Give the JSON that came with the weights, or none.")
    return TurboVAEConfig.from_mapping(content, str(config))


def turbo_configs(source: Path) -> dict[Path, dict[str, Any]]:
    """The JSON files beside a checkpoint file, or in its folder, that describe a Turbo VAE, with their contents."""
    folder = source if is_folder(source) else source.parent
    return {path: content for path in sorted(folder.glob("*.json"))
            if (content := read_json_object(path)) is not None and "decoder_block_out_channels" in content}


def _find_turbo_config(source: Path) -> TurboVAEConfig | None:
    """The JSON beside a checkpoint file, or in its folder, that describes a Turbo VAE.

    One with the file's own name is preferred; of several others none is taken, for nothing tells which.
    """
    found = turbo_configs(source)
    own = source.with_suffix(".json")
    chosen = own if own in found else next(iter(found)) if len(found) == 1 else None
    return None if chosen is None else TurboVAEConfig.from_mapping(found[chosen], str(chosen))
