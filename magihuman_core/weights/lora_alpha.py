"""How strong a LoRA is where its tensors do not say it: what PEFT and diffusers write beside them.

y = W x + scale * up (down x), where the scale is alpha / rank. Many files hold alpha as a tensor for each layer; PEFT
writes it into adapter_config.json beside adapter_model.safetensors, diffusers into the file's metadata.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.json_file import read_json_object
from ..checkpoint.lazy_tensor import InMemory
from ..checkpoint.weight_files import SAFETENSORS, suffix

BESIDE = "adapter_config.json"
METADATA = "lora_adapter_metadata"  # diffusers: a JSON table of "transformer.lora_alpha" and the like

log = logging.getLogger(__name__)


def with_stated_alpha(checkpoint: Checkpoint, down_endings: tuple[str, ...]) -> Checkpoint:
    """A LoRA with an alpha for each layer that has none, where a configuration states it.

    down_endings: of the names of `down` matrices, [rank, in].
    """
    stated = _configuration(checkpoint)
    if stated is None:
        return checkpoint
    entries = dict(checkpoint.entries)
    for key, entry in checkpoint.entries.items():
        ending = max((e for e in down_endings if key.endswith(e)), key=len, default="")
        layer = key.removesuffix(ending)
        if not ending or len(entry.shape) != 2 or not entry.shape[0] or layer + ".alpha" in entries:
            continue
        rank = entry.shape[0]
        alpha = _for_layer(stated.get("alpha_pattern"), layer, stated["lora_alpha"])
        entries[layer + ".alpha"] = InMemory(torch.tensor(alpha * (rank**0.5 if stated.get("use_rslora") else 1.0)))
    return checkpoint.with_entries(entries)


def _configuration(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """PEFT's configuration of a LoRA, from its metadata or from beside it; None where there is none that says alpha."""
    found = read_json_object(checkpoint.metadata.get(METADATA, "")) or {}
    stated = {key.rpartition(".")[2]: value for key, value in found.items()}
    if not _is_number(stated.get("lora_alpha")):
        file = _beside(checkpoint.path)
        stated = {} if file is None else read_json_object(file) or {}
    if not _is_number(stated.get("lora_alpha")):
        return None
    log.info("%s: its configuration states alpha %g.", checkpoint.name, stated["lora_alpha"])
    return stated


def _beside(path: Path | None) -> Path | None:
    """adapter_config.json beside a file that it belongs to: the only one of its folder, or so named."""
    if path is None:
        return None
    folder = path if path.is_dir() else path.parent
    file = folder / BESIDE
    if not file.is_file():
        return None
    others = [other for other in folder.iterdir() if suffix(other) in SAFETENSORS]
    if path.is_dir() or len(others) == 1 or path.name.startswith("adapter_model"):
        return file
    log.warning("%s: %s lies beside it, but so do other files, and it may be of one of them: it is not used.", path,
                BESIDE)
    return None


def _for_layer(patterns: Any, layer: str, usual: float) -> float:
    """The value of the longest pattern that is the layer's name or its end, or the usual one."""
    found = {name: value for name, value in patterns.items() if isinstance(name, str) and _is_number(value) and (
        layer == name or layer.endswith("." + name))} if isinstance(patterns, dict) else {}
    return float(found[max(found, key=len)]) if found else float(usual)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
