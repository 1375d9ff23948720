"""The text encoder's tensors under our keys, which are those of the official checkpoint."""

from collections.abc import Mapping

from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint, as_checkpoint, renamed
from ..errors import CheckpointError

PREFIXES = ("model.encoder.", "encoder.", "")


def encoder_keys(checkpoint: Mapping[str, Tensor]) -> Checkpoint:
    """The encoder's tensors of a file, as `encoder.*`; the decoder and heads are dropped.

    Accepts Hugging Face's `model.encoder.*`, `encoder.*`, and bare keys. Raises CheckpointError otherwise.
    """
    checkpoint = as_checkpoint(checkpoint)
    prefix = next((p for p in PREFIXES if p + "layers.0.pre_self_attn_layernorm.weight" in checkpoint), None)
    if prefix is None:
        raise CheckpointError(f"{checkpoint.name}: no T5Gemma encoder inside (no encoder.layers.0."
                              "pre_self_attn_layernorm.weight). Choose the weights of T5Gemma-9B-UL2.")
    parts = tuple(prefix + part for part in ("embed_tokens.", "layers.", "norm."))
    return renamed(checkpoint, lambda key: "encoder." + key[len(prefix):] if key.startswith(parts) else None)
