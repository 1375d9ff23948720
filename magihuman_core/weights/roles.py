"""The role of a network, and the length of the clips it knows, which no tensor shows: from its metadata or its name."""

import re
from collections.abc import Mapping
from pathlib import Path

from ..recipes import RECIPES, Recipe


def find_role(path: Path | None, metadata: Mapping[str, str]) -> str | None:
    """The role of a network from its metadata, or else from the names of its file and folders.

    Names are asked from the file outwards. In diffusers-style folders `transformer/` beside an `sr/` is the
    first stage even where the folder around both is called "...1080p".
    """
    if metadata.get("role") in RECIPES:
        return metadata["role"]
    if path is None:
        return None
    path = Path(path).absolute()
    names = [path.name, *(parent.name for parent in path.parents)][:3]
    first_stage = super_resolution = False
    for name, folder in zip(names, path.parents, strict=False):
        name = name.lower()
        super_resolution |= bool(re.search(r"(^|[^a-z])sr([^a-z]|$)", name))
        if name == "transformer" and any((folder / sr).is_dir() for sr in ("sr", "sr_transformer")):
            first_stage = True
        if not first_stage:
            if "540" in name:
                return "sr_540p"
            if "1080" in name and (super_resolution or ("base" not in name and "distill" not in name)):
                return "sr_1080p"
        if not super_resolution or first_stage:
            if "distill" in name:
                return "distilled"
            # Wan2GP's file of the base model says nothing but "magi_human_bf16".
            if re.search(r"(^|[^a-z])base([^a-z]|$)", name) or re.match(r"magi_human_(quanto_)?bf16", name):
                return "base"
    return None


def window_seconds(recipe: Recipe, metadata: Mapping[str, str]) -> float:
    """Seconds that a network makes in one piece: what its file says ("clip_seconds"), or else its recipe."""
    try:
        seconds = float(metadata.get("clip_seconds", ""))
    except ValueError:
        return recipe.window
    return seconds if 0 < seconds <= 3600 else recipe.window
