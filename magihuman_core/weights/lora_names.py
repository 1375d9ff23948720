"""Names in LoRA files: which layer of the network a tensor changes, and in what way.

A file names the layers as the official checkpoint does, where linear_qkv is q, k, v and gate, three times in the
sandwich; or as split checkpoints do, with linear_q_video and its like; or as we do.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.header import quoted
from ..checkpoint.lazy_tensor import InMemory, LazyTensor
from ..model.config import RELEASED, DiTConfig
from .fused import Part, fused_parts, our_rows
from .lora_alpha import with_stated_alpha
from .lora_prefixes import first_prefix

SPELLINGS = {
    "down": (".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", ".lora.down.weight", ".lora_A"),
    "up": (".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight", ".lora.up.weight", ".lora_B"),
    "alpha": (".alpha",),
    "magnitude": (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight",
                  ".lora_magnitude_vector.default.weight"),
    "diff": (".diff",),
    "diff_b": (".diff_b",),
}
ENDINGS = {ending: role for role, endings in SPELLINGS.items() for ending in endings}
SHOWN = 10  # names in a warning; all of them are in `unmatched`


def lora_targets(config: DiTConfig) -> dict[str, list[Part]]:
    """Every name a file may have for a layer (without prefix and ending) -> where its rows belong.

    Official names, those of split checkpoints, and our own.
    """
    table: dict[str, list[Part]] = {}
    for official, parts in fused_parts(config).items():
        if not official.endswith(".weight"):
            continue
        targets = []
        for key, rows in our_rows(parts).items():
            whole = slice(0, None if rows.stop is None else rows.stop - rows.start)
            targets.append(Part(key, rows, whole))
            table[key.removesuffix(".weight")] = [Part(key, whole, whole)]
        for part in parts:
            if part.split_key:
                rows = slice(0, part.rows.stop - part.rows.start)
                table[part.split_key.removesuffix(".weight")] = [Part(part.key, rows, part.place)]
        table[official.removesuffix(".weight")] = targets  # last: in the sandwich the plain name is the fused layer
    return table


@cache
def all_layer_names() -> Mapping[str, str]:
    """Names of layers in the released networks, and in others of as many layers: each with a sandwich or without."""
    sandwiches = ((), range(RELEASED.layers))
    tables = [lora_targets(replace(RELEASED, sandwich_layers=tuple(layers))) for layers in sandwiches]
    return layer_names(tables[0] | tables[1])


def stock_names(checkpoint: Checkpoint) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """A LoRA under names that ComfyUI's own loader looks for, and what has no place, with the reason."""
    checkpoint = with_stated_alpha(checkpoint, SPELLINGS["down"])
    layers, unmatched = by_layer(checkpoint, all_layer_names())
    entries = {}
    for layer, keys in layers.items():
        for role, key in keys.items():
            entry = checkpoint.entries[key]
            if role == "magnitude" and len(entry.shape) == 1:  # so PEFT has them, one for each row
                entry = InMemory(checkpoint[key].reshape(-1, 1))
            entries[f"diffusion_model.{layer}{SPELLINGS[role][0]}"] = entry
    return entries, unmatched


def layer_names(table: Mapping[str, list[Part]]) -> dict[str, str]:
    """Each name of a table, also with _ for each dot -> the name."""
    return {name.replace(".", "_"): name for name in table} | {name: name for name in table}


def find_layer(name: str, names: Mapping[str, str]) -> str | None:
    """The layer that a file's name for it, with any prefix, means; names: from layer_names."""
    while name not in names:
        prefix = first_prefix(name)
        if not prefix:
            return None
        name = name.removeprefix(prefix)
    return names[name]


def by_layer(keys: Iterable[str], names: Mapping[str, str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """({layer: {role: key}}, {key that has no place: why}) of a file's keys; names: from layer_names."""
    layers: dict[str, dict[str, str]] = {}
    unmatched: dict[str, str] = {}
    for key in keys:
        ending = max((e for e in ENDINGS if key.endswith(e)), key=len, default="")
        layer = find_layer(key.removesuffix(ending), names) if ending else None
        if layer is None:
            unmatched[key] = "no such layer" if ending else "not a kind of tensor that is known here"
        elif ENDINGS[ending] in layers.setdefault(layer, {}):
            unmatched[key] = f"the same layer as {layers[layer][ENDINGS[ending]]}"
        else:
            layers[layer][ENDINGS[ending]] = key
    return layers, unmatched


def listed(unmatched: Mapping[str, str]) -> str:
    """The first of the names that fit nothing, with the reasons."""
    shown = ", ".join(f"{quoted(key)} ({reason})" for key, reason in list(unmatched.items())[:SHOWN])
    return shown + (f", and {len(unmatched) - SHOWN} more" if len(unmatched) > SHOWN else "")
