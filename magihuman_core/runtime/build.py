"""Modules on the meta device, with layers for the dtype that their weights are to be kept in."""

import torch
from torch import nn

from ..model.config import DiTConfig
from ..model.dit import MagiHumanDiT
from ..nn.operations import Operations
from ..nn.quantized_linear import compute_dtype_of, quantize_linears
from ..text.config import TextEncoderConfig
from ..text.encoder import TextEncoder
from ..weights.precision import may_quantize


def build_dit(config: DiTConfig, dtype: torch.dtype, *, compute_dtype: torch.dtype | None = None,
              operations: Operations = nn) -> MagiHumanDiT:
    """The network, its blocks' weights in dtype, which may be one of 8 bits.

    compute_dtype: also of the weights that are not kept in 8 bits; by default dtype, or bf16 where that is of 8 bits.
    """
    computed = compute_dtype or compute_dtype_of(dtype)
    dit = MagiHumanDiT(config, operations=operations, dtype=computed, device="meta")
    quantize_linears(dit, dtype, may_quantize)
    return dit.requires_grad_(False)


def build_text_encoder(config: TextEncoderConfig, dtype: torch.dtype | None, *,
                       operations: Operations = nn) -> TextEncoder:
    """The text encoder, without tokenizer, its linear layers' weights in dtype; None: torch's default."""
    computed = None if dtype is None else compute_dtype_of(dtype)
    encoder = TextEncoder(config, operations=operations, dtype=computed, device="meta")
    quantize_linears(encoder, dtype, may_quantize)
    return encoder.requires_grad_(False)
