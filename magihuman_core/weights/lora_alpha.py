"""How strong a LoRA is where its tensors do not say it: what PEFT and diffusers write beside them.

y = W x + scale * up (down x), where the scale is alpha / rank. Many files hold alpha as a tensor for each layer; PEFT
writes it into adapter_config.json beside adapter_model.safetensors, diffusers into the file's metadata.
"""

import logging
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.header import quoted
from ..checkpoint.json_file import read_json_object
from ..checkpoint.lazy_tensor import InMemory
from ..checkpoint.open import unwrapped
from ..checkpoint.weight_files import SAFETENSORS, is_file, suffix
from .lora_prefixes import is_prefix

NAME = re.compile(r"\^?[\w.-]+\$?", re.ASCII)
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
    entries, used = dict(checkpoint.entries), set()
    patterns = _patterns(stated.get("alpha_pattern"), checkpoint.name)
    for key, entry in checkpoint.entries.items():
        ending = max((e for e in down_endings if key.endswith(e)), key=len, default="")
        layer = key.removesuffix(ending)
        if not ending or len(entry.shape) != 2 or not entry.shape[0]:
            continue
        fitting = [pattern for pattern in _names(layer) if pattern in patterns]
        used.update(fitting)
        if layer + ".alpha" not in entries:
            # Of several the first, as PEFT does.
            alpha = min((patterns[pattern] for pattern in fitting), default=(0, stated["lora_alpha"]))[1]
            root = entry.shape[0] ** 0.5 if stated.get("use_rslora") else 1.0
            entries[layer + ".alpha"] = InMemory(torch.tensor(float(alpha) * root))
    if unused := [pattern for pattern in patterns if pattern not in used]:
        log.warning("%s: %d names in its alpha_pattern are of no layer in it, the first is %s. Make sure that the "
                    "configuration belongs to it.", checkpoint.name, len(unused), quoted(unused[0]))
    return checkpoint.with_entries(entries)


def _configuration(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """PEFT's configuration of a LoRA, from its metadata or from beside it; None where there is none that says alpha."""
    found = read_json_object(checkpoint.metadata.get(METADATA, "")) or {}
    stated = {key.rpartition(".")[2]: value for key, value in found.items()}
    if not _is_number(stated.get("lora_alpha")):
        file = _beside(checkpoint)
        stated = {} if file is None else read_json_object(file) or {}
    if not _is_number(stated.get("lora_alpha")):
        return None
    log.info("%s: its configuration states alpha %g.", checkpoint.name, stated["lora_alpha"])
    return stated


def _beside(checkpoint: Checkpoint) -> Path | None:
    """adapter_config.json beside a file that it belongs to: the only one of its folder, or so named."""
    path = checkpoint.path
    if path is None:
        return None
    file = path.parent / BESIDE
    if not is_file(file):
        return None
    others: set[Path] = set()
    with suppress(OSError):  # a folder that may not be listed
        others = {other for other in path.parent.iterdir() if suffix(other) in SAFETENSORS} - {*checkpoint.files}
    if not others or path.name.startswith("adapter_model"):
        return file
    log.warning("%s: %s lies beside it, but so do other files, and it may be of one of them: it is not used.", path,
                BESIDE)
    return None


def _patterns(stated: Any, file: str) -> dict[str, tuple[int, float]]:
    """PEFT's table of layers with an alpha of their own: name -> (its place in the table, alpha).

    Its names are regular expressions there, which a foreign text cannot be allowed: one can take forever. They mostly
    are plain names, or the beginning and end of such: ^ and $ are understood, and escaped dots. Others are said.
    """
    patterns: dict[str, tuple[int, float]] = {}
    strange = []
    for written, value in stated.items() if isinstance(stated, dict) else ():
        name = unwrapped(written.replace("\\.", "."))
        if NAME.fullmatch(name) and _is_number(value):
            patterns.setdefault(name.removesuffix("$"), (len(patterns), value))
        else:
            strange.append(f"{quoted(written)}: {quoted(value)}")
    if strange:
        log.warning("%s: of its alpha_pattern %d entries are not read here, the first is %s. These layers have the "
                    "alpha of all others: write their names out.", file, len(strange), strange[0])
    return patterns


def _names(layer: str) -> list[str]:
    """What a pattern for a layer may say: the ends of the name that a file has for it, or after ^ all of it."""
    starts = [0, *(match.end() for match in re.finditer(r"\.", layer))]
    return [layer[start:] for start in starts] + ["^" + layer[start:] for start in starts if is_prefix(layer[:start])]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
