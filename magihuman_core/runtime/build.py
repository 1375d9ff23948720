"""Modules on the meta device, with layers for the dtype that their weights are to be kept in."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..model.config import DiTConfig
from ..model.dit import MagiHumanDiT
from ..nn.operations import Operations
from ..nn.quantized_linear import compute_dtype_of, narrow_linears
from ..text.config import TextEncoderConfig
from ..text.encoder import TextEncoder
from ..vae.audio import AudioVAE, AudioVAEConfig
from ..vae.turbo import TurboVAE, TurboVAEConfig
from ..vae.video import VideoVAE, VideoVAEConfig
from ..weights.precision import may_quantize

Config = DiTConfig | TurboVAEConfig | VideoVAEConfig | AudioVAEConfig | TextEncoderConfig
VAES: dict[type, Callable[..., nn.Module]] = {
    AudioVAEConfig: AudioVAE, TurboVAEConfig: TurboVAE, VideoVAEConfig: VideoVAE}


def build_dit(config: DiTConfig, dtype: torch.dtype, *, compute_dtype: torch.dtype | None = None,
              operations: Operations = nn, wide: frozenset[str] = frozenset()) -> MagiHumanDiT:
    """The network, its blocks' large weights in dtype, which may be one of 8 bits.

    compute_dtype: also of the other weights; by default dtype, or bf16 where that is of 8 bits. wide: names of large
    weights that are kept in bf16 where the others are in 8 bits.
    """
    computed = compute_dtype or compute_dtype_of(dtype)
    dit = MagiHumanDiT(config, operations=operations, dtype=computed, device="meta")
    _narrow(dit, dtype, wide, computed)
    return dit.requires_grad_(False)


def build_text_encoder(config: TextEncoderConfig, dtype: torch.dtype | None, *,
                       compute_dtype: torch.dtype | None = None, operations: Operations = nn,
                       wide: frozenset[str] = frozenset()) -> TextEncoder:
    """The text encoder, without tokenizer, its linear layers' weights in dtype; None: torch's default.

    compute_dtype: by default that of the weights, or bf16 where they are of 8 bits. wide: as for build_dit.
    """
    kept = None if dtype is None else compute_dtype_of(dtype)
    encoder = TextEncoder(config, operations=operations, dtype=kept, device="meta")
    encoder.compute_dtype = compute_dtype
    _narrow(encoder, dtype, wide, compute_dtype)
    return encoder.requires_grad_(False)


def _narrow(module: nn.Module, dtype: torch.dtype | None, wide: frozenset[str],
            compute_dtype: torch.dtype | None) -> None:
    narrow_linears(module, dtype, lambda key: may_quantize(key) and key not in wide, compute_dtype)
    if wide and dtype is not None:
        narrow_linears(module, compute_dtype_of(dtype), may_quantize, compute_dtype)


def on_meta(config: Config, dtype: torch.dtype, compute_dtype: torch.dtype | None = None,
            wide: frozenset[str] = frozenset()) -> Any:
    """The part of this configuration, without content."""
    with torch.inference_mode(False):
        if isinstance(config, DiTConfig):
            part: nn.Module = build_dit(config, dtype, compute_dtype=compute_dtype, wide=wide)
        elif isinstance(config, TextEncoderConfig):
            part = build_text_encoder(config, dtype, compute_dtype=compute_dtype, wide=wide)
        else:
            part = VAES[type(config)](config, dtype=dtype, device="meta")
        return part.eval().requires_grad_(False)


def one_of_each_kind(config: DiTConfig) -> tuple[DiTConfig, list[int]]:
    """A network with one block of each kind that config has, and how many blocks of each kind there are."""
    kinds: dict[tuple[bool, ...], int] = {}
    for i in range(config.layers):
        kind = (i in config.sandwich_layers, i in config.gelu_layers, i in config.post_norm_layers,
                i in config.local_layers)
        kinds[kind] = kinds.get(kind, 0) + 1
    sandwich, gelu, post_norm, local = (tuple(n for n, kind in enumerate(kinds) if kind[which]) for which in range(4))
    small = replace(config, layers=len(kinds), sandwich_layers=sandwich, gelu_layers=gelu, post_norm_layers=post_norm,
                    local_layers=local)
    return small, list(kinds.values())
