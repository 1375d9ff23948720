"""Files that ComfyUI's save nodes wrote: one part, or a network, a text encoder and a VAE in one.

    model.diffusion_model.*            the network
    cond_stage_model.transformer.*     the text encoder, with its tokenizer and configuration as bytes beside it
    first_stage_model.*                a VAE
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint, renamed
from ..errors import CheckpointError

PREFIXES = {"network": "model.diffusion_model.", "text_encoder": "cond_stage_model.", "video_vae": "first_stage_model.",
            "turbo_vae": "first_stage_model.", "audio_vae": "first_stage_model."}
TOKENIZER, CONFIG = "tokenizer_json", "config"  # names of texts in a checkpoint's metadata
TEXTS = {"tokenizer_json": TOKENIZER, "config_json": CONFIG}  # tensors of bytes -> where their text goes
MAX_TEXT = 1 << 27  # bytes; T5Gemma's tokenizer.json has 34 MB


def saved_part(checkpoint: Checkpoint, kind: str) -> Checkpoint:
    """The part of this kind of a file that holds several; any other checkpoint without its texts, if it has any.

    Texts that are kept as tensors go into the metadata. Raises CheckpointError where they are damaged.
    """
    prefix = PREFIXES.get(kind, "")
    if prefix and any(key.startswith(prefix) for key in checkpoint):
        checkpoint = renamed(checkpoint, lambda key: key.removeprefix(prefix) if key.startswith(prefix) else None)
    if kind != "text_encoder":
        return checkpoint
    texts = {place: _text(checkpoint, key) for key, place in TEXTS.items() if key in checkpoint}
    entries = {key.removeprefix("transformer."): entry for key, entry in checkpoint.entries.items() if key not in TEXTS}
    return replace(checkpoint, entries=entries, metadata={**checkpoint.metadata, **texts})


def text_tensors(texts: Mapping[str, str]) -> dict[str, Tensor]:
    """Texts (by their names in metadata) as the tensors that `saved_part` finds."""
    return {key: torch.tensor(list(texts[place].encode()), dtype=torch.uint8)
            for key, place in TEXTS.items() if place in texts}


def _text(checkpoint: Checkpoint, key: str) -> str:
    entry = checkpoint.entries[key]
    if entry.dtype != torch.uint8 or len(entry.shape) != 1 or entry.numel > MAX_TEXT:
        raise CheckpointError(f"{checkpoint.name}: {key} is not a text of bytes. Save the text encoder again.")
    try:
        return bytes(entry.read().numpy()).decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{checkpoint.name}: {key} is damaged. Save the text encoder again.") from None
