"""Modules on the meta device, with layers for the dtype that their weights are to be kept in."""

import torch
from torch import nn

from ..model.config import DiTConfig
from ..model.dit import MagiHumanDiT
from ..nn.operations import Operations
from ..nn.quantized_linear import compute_dtype_of, narrow_linears
from ..text.config import TextEncoderConfig
from ..text.encoder import TextEncoder
from ..weights.precision import may_quantize


def build_dit(config: DiTConfig, dtype: torch.dtype, *, compute_dtype: torch.dtype | None = None,
              operations: Operations = nn) -> MagiHumanDiT:
    """The network, its blocks' large weights in dtype, which may be one of 8 bits.

    compute_dtype: also of the other weights; by default dtype, or bf16 where that is of 8 bits.
    """
    computed = compute_dtype or compute_dtype_of(dtype)
    dit = MagiHumanDiT(config, operations=operations, dtype=computed, device="meta")
    narrow_linears(dit, dtype, may_quantize, computed)
    return dit.requires_grad_(False)


def build_text_encoder(config: TextEncoderConfig, dtype: torch.dtype | None, *,
                       compute_dtype: torch.dtype | None = None, operations: Operations = nn) -> TextEncoder:
    """The text encoder, without tokenizer, its linear layers' weights in dtype; None: torch's default.

    compute_dtype: by default that of the weights, or bf16 where they are of 8 bits.
    """
    kept = None if dtype is None else compute_dtype_of(dtype)
    encoder = TextEncoder(config, operations=operations, dtype=kept, device="meta")
    encoder.compute_dtype = compute_dtype
    narrow_linears(encoder, dtype, may_quantize, compute_dtype)
    return encoder.requires_grad_(False)
