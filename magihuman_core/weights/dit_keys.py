"""The network's official tensors and our layers: one table of rows serves loading, saving and LoRA.

Official checkpoints stack a sandwich layer's three copies along the rows (video, audio, text), and
within each copy linear_qkv holds q, k, v and then the gate. Our experts hold each copy apart, and the
gate apart from q, k and v. Rows of a stacked tensor are contiguous, so splitting reads nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..checkpoint.checkpoint import Checkpoint, Entry
from ..model.config import DiTConfig
from ..model.sequence import MODALITIES
from .recognize import explain_shape_errors

ATTENTION = ("pre_norm", "linear_qkv", "linear_proj", "q_norm", "k_norm")
MLP = ("pre_norm", "up_gate_proj", "down_proj")
TOP = (
    "adapter.video_embedder.weight",
    "adapter.video_embedder.bias",
    "adapter.text_embedder.weight",
    "adapter.text_embedder.bias",
    "adapter.audio_embedder.weight",
    "adapter.audio_embedder.bias",
    "adapter.rope.bands",
    "final_norm_video.weight",
    "final_norm_audio.weight",
    "final_linear_video.weight",
    "final_linear_audio.weight",
)


def official_rows(config: DiTConfig) -> dict[str, list[tuple[str, int | None]]]:
    """Official key -> [(our key, rows it takes of the official tensor, in order)]; None: all of them."""
    c = config
    qkv_rows = (c.heads + 2 * c.kv_heads) * c.head_dim
    table: dict[str, list[tuple[str, int | None]]] = {}
    for layer in range(c.layers):
        experts = MODALITIES if layer in c.sandwich_layers else ("shared",)
        gelu = layer in c.gelu_layers
        width = c.gelu_width if gelu else c.swiglu_width
        rows = {
            "attention.pre_norm": c.hidden,
            "attention.linear_qkv": qkv_rows,
            "attention.linear_gate": c.heads,
            "attention.linear_proj": c.hidden,
            "attention.q_norm": c.head_dim,
            "attention.k_norm": c.head_dim,
            "mlp.pre_norm": c.hidden,
            "mlp.up_gate_proj": width if gelu else 2 * width,
            "mlp.down_proj": c.hidden,
            "attn_post_norm": c.hidden,
            "mlp_post_norm": c.hidden,
        }
        names = [f"attention.{n}" for n in ATTENTION] + [f"mlp.{n}" for n in MLP]
        if layer in c.post_norm_layers:
            names += ["attn_post_norm", "mlp_post_norm"]
        for name in names:
            parts = (name, "attention.linear_gate") if name == "attention.linear_qkv" else (name,)
            table[f"block.layers.{layer}.{name}.weight"] = [
                (f"blocks.{layer}.experts.{expert}.{part}.weight", rows[part]) for expert in experts for part in parts
            ]
    return table | {key: [(key, None)] for key in TOP}


def network_config(checkpoint: Checkpoint, **overrides) -> DiTConfig:
    """The sizes that a checkpoint of official keys tells. Raises CheckpointError where its shapes make no sense."""
    with explain_shape_errors(checkpoint.name, "network"):
        return DiTConfig.from_state_dict(checkpoint, **overrides)


def keep_fp32(key: str) -> bool:
    """Whether one of our keys is precious: embedders, heads, every norm, rotary bands, scales of quantized weights."""
    return key.startswith(("adapter.", "final_")) or "norm" in key or key.endswith(".scale")


def may_quantize(key: str) -> bool:
    """Whether one of our keys is a matrix that may be kept in 8 bits. The gate is small, and worth its precision."""
    return key.startswith("blocks.") and not keep_fp32(key) and "linear_gate" not in key


def split_official(checkpoint: Checkpoint, config: DiTConfig) -> Checkpoint:
    """Official keys -> our keys, lazily. Keys that are no part of the network stay, so that loading names them."""
    table = official_rows(config)
    entries: dict[str, Entry] = {}
    for key, entry in checkpoint.entries.items():
        start = 0
        for ours, rows in table.get(key, [(key, None)]):
            stop = start + (entry.shape[0] if rows is None else rows)
            # A tensor too short for its rows is handed on whole: its shape is then reported as wrong.
            entries[ours] = entry.rows(start, stop) if entry.shape and stop <= entry.shape[0] else entry
            start = stop
    return checkpoint.with_entries(entries)


def official_state_dict(dit: nn.Module) -> dict[str, Tensor]:
    """The network's weights under official keys and shapes, ready to be saved."""
    ours: Mapping[str, Tensor] = dit.state_dict()
    return {
        key: torch.cat([ours[k] for k, _ in parts]) if len(parts) > 1 else ours[parts[0][0]]
        for key, parts in official_rows(dit.config).items()
    }
