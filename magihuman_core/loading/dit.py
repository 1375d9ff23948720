"""From a checkpoint of whatever layout and size to the network."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint.assign import assign_weights
from ..checkpoint.quantize import kept_wide, quantized_layers, stored_dtype
from ..model.dit import MagiHumanDiT
from ..nn.operations import Operations
from ..nn.quantized_linear import EIGHT_BITS
from ..runtime.build import build_dit
from ..runtime.devices import check_dtype
from ..runtime.fuse import can_fuse, fuse_elementwise
from ..runtime.streaming import choose_streamed, is_streamed, stream_blocks
from ..weights.dit_keys import network_config, split_official
from ..weights.open import open_checkpoint
from ..weights.precision import keep_fp32, may_quantize
from ..weights.recognize import explain_shape_errors

log = logging.getLogger(__name__)


def load_dit(source: str | Path | Mapping[str, Tensor], *, dtype: torch.dtype | None = None,
             device: torch.device | str = "cpu", operations: Operations = nn, compute_dtype: torch.dtype | None = None,
             resident_blocks: int | None = None, stream_from: str | None = None, fuse: bool | None = None,
             **overrides) -> MagiHumanDiT:
    """Build the network that a checkpoint holds, at whatever size, and fill it.

    source: a file, folder, index file or mapping of tensors in any layout. dtype: what blocks are stored and
    computed in, torch.bfloat16 (default, as released) or torch.float32; or torch.float8_e4m3fn, float8_e5m2 or
    int8, which they are only stored in (see nn/quantized_linear.py; taken over from the file where it has them so, and
    with them what it has in 16 bits) and computed in compute_dtype, by default bf16; bfloat16 computed in float32 is
    for devices without bf16. Embedders, heads and norms are fp32 in any case.
    overrides: fields of DiTConfig that no checkpoint records: positions ("v1" for super-resolution), local_layers
    and local_radius.
    resident_blocks: how many blocks stay in memory, None: all. The others are brought in when they are needed (see
    runtime/streaming.py; for inference only), from stream_from: "file", or "memory" (read once, and kept in main
    memory); None: memory on an accelerator, where there is enough.
    fuse: elementwise work through torch.compile (see runtime/fuse.py); None: on CUDA with Triton, True: always.
    Raises CheckpointError when the source is not a MagiHuman network or damaged, InputError for what cannot be done.
    """
    dtype = dtype or torch.bfloat16
    check_dtype(dtype, device)  # what cannot be done is said before weights are read
    fuse = can_fuse(fuse, device)
    checkpoint = open_checkpoint(source, "network")
    config = network_config(checkpoint, **overrides)
    with explain_shape_errors(checkpoint.name, "network"):
        official = split_official(checkpoint, config)
        dit = build_dit(config, dtype, compute_dtype=compute_dtype, operations=operations,
                        wide=kept_wide(official, dtype, may_quantize))
        tensors = quantized_layers(official, dtype, may_quantize)
    streamed = choose_streamed(dit.blocks, resident_blocks)
    assign_weights(dit, tensors, dtype=dit.compute_dtype, device=device, keep_fp32=keep_fp32,
                   skip=lambda key: is_streamed(key, streamed))
    if streamed:
        streamer = stream_blocks(dit.blocks, tensors, streamed, device, stream_from)
        rounds = dtype in EIGHT_BITS and stored_dtype(official, may_quantize) != dtype
        if rounds and not streamer.in_memory:
            log.warning("%s: is not stored in %s, so blocks that stream from it are rounded anew at each step. Convert "
                        "it first (magihuman convert), or stream from memory.", checkpoint.name, str(dtype)[6:])
    fuse_elementwise(dit, fuse, device)
    return dit.eval()
