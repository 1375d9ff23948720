"""The network under its official names, whatever layout a file has.

Split layouts keep q, k, v and the gate apart, and the three modalities of a sandwich layer:
linear_q_video, linear_k_video, ... up_gate_proj_text. Joined again from top to bottom, in the order
video, audio, text and within each q, k, v, gate, they are the official stacked tensors. Norms are stacked in
every layout.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint, Entry, concatenated, renamed, strip_prefix
from ..checkpoint.header import quoted
from ..checkpoint.quantized import dequantized
from ..errors import CheckpointError
from ..model.sequence import MODALITIES

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "module.", "model.")
PARTS = ("q", "k", "v", "g")
SPLIT = re.compile(
    r"(?P<head>.*\.attention\.linear_)(?P<part>[qkvg])(_(?P<a>video|audio|text))?\.weight"
    r"|(?P<name>.*\.(linear_proj|up_gate_proj|down_proj))_(?P<b>video|audio|text)\.weight"
)


def official_network(checkpoint: Mapping[str, Tensor]) -> Checkpoint:
    """Any layout of the network -> official keys and shapes, decoded and joined while they are read.

    Raises CheckpointError when one part of a split tensor is missing.
    """
    checkpoint = dequantized(renamed(checkpoint, lambda key: key))
    if any(".block.layers." in key for key in checkpoint):
        checkpoint = strip_prefix(checkpoint, PREFIXES)
    groups: dict[str, dict[tuple[str, str], Entry]] = {}
    entries: dict[str, Entry] = {}
    for key, entry in checkpoint.entries.items():
        match = SPLIT.fullmatch(key)
        if match is None or not entry.shape:
            entries[key] = entry
            continue
        target = match["head"] + "qkv.weight" if match["part"] else match["name"] + ".weight"
        groups.setdefault(target, {})[match["a"] or match["b"] or "", match["part"] or ""] = entry
    for target, parts in groups.items():
        modalities = MODALITIES if any(modality for modality, _ in parts) else ("",)
        names = PARTS if any(name for _, name in parts) else ("",)
        wanted = [(modality, name) for modality in modalities for name in names]
        missing = [part for part in wanted if part not in parts]
        if missing or target in entries:
            what = " ".join(filter(None, missing[0])) if missing else "the joined tensor"
            fault = f"the part {what} is missing" if missing else "it is there both split and joined"
            raise CheckpointError(f"{checkpoint.name}: {quoted(target)} cannot be joined: {fault}. "
                                  "The file is incomplete: download it again.")
        entries[target] = _joined(checkpoint, target, [parts[part] for part in wanted])
    return checkpoint.with_entries(entries)


def _joined(checkpoint: Checkpoint, target: str, parts: list[Entry]) -> Entry:
    if len({part.shape[1:] for part in parts}) != 1:
        raise CheckpointError(f"{checkpoint.name}: {quoted(target)} cannot be joined: its parts have "
                              "different widths. The file is damaged: download it again.")
    return concatenated(parts)
