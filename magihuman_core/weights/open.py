"""Opening MagiHuman's weights, in whatever layout and under whatever names they come."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.open import open_stored
from ..checkpoint.quantized import dequantized, with_notes
from .comfyui_saved import saved_part
from .diffusers_names import original_names
from .dit_keys import official_network
from .recognize import require_kind

# Where a diffusers-style folder keeps each kind.
SUBFOLDERS = {None: ("transformer",), "network": ("transformer",), "text_encoder": ("text_encoder",),
              "video_vae": ("vae",), "audio_vae": ("audio_vae", "vae"), "turbo_vae": ("turbo_vae",)}
MODEL_FOLDERS = ("base", "distill", "540p_sr", "1080p_sr", "sr_540p", "sr_1080p")


def open_checkpoint(source: str | Path | Mapping[str, Tensor], kind: str | None = None, *, mapped: bool = False,
                    raw: bool = False, allow_pickle_checkpoint: bool = False) -> Checkpoint:
    """Open weights for reading; only headers are read here. Quantized weights are decoded as they are read.

    source: a .safetensors or .gguf file, a *.safetensors.index.json, a folder that holds either (or shards without
    an index, or a diffusers-style folder around it), or a mapping from names to tensors.
    kind: what is wanted, a key of recognize.KINDS: anything else is refused, and in a diffusers-style folder
    it chooses the part. A "network" in any layout, and a VAE from diffusers, get their official names.
    mapped: tensors whose dtype is kept are views of the file instead of copies, read-only: writing into them ends the
    process. raw: give names and tensors as they are stored.
    allow_pickle_checkpoint: also take the Turbo VAE's training checkpoint (.ckpt), by torch.load with
    weights_only, which runs no code; its averaged weights are given.
    Raises CheckpointError with the file and the remedy.
    """
    checkpoint = open_stored(source, subfolders=SUBFOLDERS.get(kind, ()), models=MODEL_FOLDERS, mapped=mapped,
                             allow_pickle=allow_pickle_checkpoint)
    if not raw:
        checkpoint = with_notes(checkpoint)
    if kind is not None and not raw:
        checkpoint = saved_part(checkpoint, kind)
    if kind is not None:
        require_kind(checkpoint, kind)
    if raw:
        return checkpoint
    if kind == "network":
        return official_network(checkpoint)
    return original_names(dequantized(checkpoint), kind)
