"""How official tensors fuse the network's weights: the one table for reading, splitting, saving and LoRA.

An official tensor of a sandwich layer holds video's, audio's and text's copy, from top to bottom, and within each
copy linear_qkv holds q, k, v and then the gate. The same weight has three kinds of names:

    official  block.layers.0.attention.linear_qkv.weight           everything
    split     block.layers.0.attention.linear_q_video.weight       one projection of one modality
    ours      blocks.0.experts.video.attention.linear_qkv.weight   q, k and v of one modality, and the gate apart

Where no modality has a copy of its own, split names end without one, and our expert is called "shared". Norms are
fused in split checkpoints too. Rows of a tensor are contiguous, so splitting reads nothing twice.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from ..model.config import DiTConfig
from ..model.sequence import MODALITIES

PROJECTIONS = ("q", "k", "v", "g")  # g: the gate
QKV, GATE = "attention.linear_qkv", "attention.linear_gate"
SPLIT_LAYERS = (QKV, "attention.linear_proj", "mlp.up_gate_proj", "mlp.down_proj")
SPLIT = re.compile(
    r"(?P<head>.*\.attention\.linear_)(?P<projection>[qkvg])(_(?P<a>video|audio|text))?\.weight"
    r"|(?P<name>.*\.(linear_proj|up_gate_proj|down_proj))_(?P<b>video|audio|text)\.weight"
)
OURS = re.compile(r"blocks\.(\d+)\.experts\.(video|audio|text|shared)\.(.+)\.weight")
OUTSIDE = (  # of the layers, where official names are ours
    "adapter.video_embedder.weight", "adapter.video_embedder.bias", "adapter.text_embedder.weight",
    "adapter.text_embedder.bias", "adapter.audio_embedder.weight", "adapter.audio_embedder.bias", "adapter.rope.bands",
    "final_norm_video.weight", "final_norm_audio.weight", "final_linear_video.weight", "final_linear_audio.weight",
)


@dataclass(frozen=True)
class Part:
    """Rows of a tensor in a file, and where they belong. A slice that ends in None means all rows."""

    key: str  # our weight
    rows: slice  # of the file's tensor
    place: slice  # of our weight
    split_key: str = ""  # the name of these rows in split checkpoints; "": they are not kept apart there


def fused_parts(config: DiTConfig) -> dict[str, list[Part]]:
    """Official key -> its parts from top to bottom."""
    table: dict[str, list[Part]] = {}
    for layer in range(config.layers):
        experts = MODALITIES if layer in config.sandwich_layers else ("shared",)
        for name, heights in _heights(config, layer).items():
            parts: list[Part] = []
            filled: dict[str, int] = {}  # our key -> its rows so far
            for expert, (projection, height) in product(experts, heights.items()):
                key = f"blocks.{layer}.experts.{expert}.{GATE if projection == 'g' else name}.weight"
                top, low = parts[-1].rows.stop if parts else 0, filled.get(key, 0)
                split = _split_key(layer, name, projection, expert)
                parts.append(Part(key, slice(top, top + height), slice(low, low + height), split))
                filled[key] = low + height
            table[f"block.layers.{layer}.{name}.weight"] = parts
    everything = slice(0, None)
    return table | {key: [Part(key, everything, everything)] for key in OUTSIDE}


def our_rows(parts: Iterable[Part]) -> dict[str, slice]:
    """Our keys in an official tensor -> the rows of each, from top to bottom."""
    rows: dict[str, slice] = {}
    for part in parts:
        first = rows.get(part.key, part.rows)
        rows[part.key] = slice(first.start, part.rows.stop)
    return rows


def fused_key(split_key: str) -> tuple[str, tuple[str, str]] | None:
    """(official key, (modality, projection)) of a split name or one of ours, with "" for what is not split.

    None for other names.
    """
    match = OURS.fullmatch(split_key)
    if match is not None:
        layer, expert, name = match.groups()
        projection = {QKV: "qkv", GATE: "g"}.get(name, "")
        return f"block.layers.{layer}.{QKV if projection else name}.weight", (expert.replace("shared", ""), projection)
    match = SPLIT.fullmatch(split_key)
    if match is None:
        return None
    name = match["head"] + "qkv" if match["projection"] else match["name"]
    return name + ".weight", (match["a"] or match["b"] or "", match["projection"] or "")


def fused_order(parts: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """All parts (modality, projection) of a tensor, from top to bottom, given some of them."""
    modalities, projections = zip(*parts, strict=True)
    order = ("qkv", "g") if "qkv" in projections else PROJECTIONS if any(projections) else ("",)
    return list(product(MODALITIES if any(modalities) else ("",), order))


def _heights(config: DiTConfig, layer: int) -> dict[str, dict[str, int]]:
    """Name of a weight in a layer -> rows of each projection ("" where there is one only), of one modality."""
    c = config
    gelu = layer in c.gelu_layers
    width = c.gelu_width if gelu else c.swiglu_width
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    heights: dict[str, int | dict[str, int]] = {
        "attention.pre_norm": c.hidden,
        QKV: dict(zip(PROJECTIONS, (queries, keys, keys, c.heads), strict=True)),
        "attention.linear_proj": c.hidden,
        "attention.q_norm": c.head_dim,
        "attention.k_norm": c.head_dim,
        "mlp.pre_norm": c.hidden,
        "mlp.up_gate_proj": width if gelu else 2 * width,
        "mlp.down_proj": c.hidden,
    }
    if layer in c.post_norm_layers:
        heights |= {"attn_post_norm": c.hidden, "mlp_post_norm": c.hidden}
    return {name: height if isinstance(height, dict) else {"": height} for name, height in heights.items()}


def _split_key(layer: int, name: str, projection: str, expert: str) -> str:
    if name not in SPLIT_LAYERS:
        return ""
    stem = f"block.layers.{layer}.{name.removesuffix('qkv') + projection if projection else name}"
    return f"{stem}_{expert}.weight" if expert in MODALITIES else f"{stem}.weight"
