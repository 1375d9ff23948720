"""The role of a network, and the length of the clips it knows, which no tensor shows: from its metadata or its name."""

import re
from collections.abc import Mapping
from pathlib import Path

from ..checkpoint.weight_files import INDEX, SHARD, is_folder
from ..recipes import RECIPES, Recipe

SR = re.compile(r"(^|[^a-z])sr([^a-z]|$)|super[ _-]?res")
# A number alone may be a step of training, a date or a graphics card: "540p", or "540" in a name with "sr".
ENLARGED = re.compile(r"(?<!\d)(540|1080)(p?)(?![a-z\d])")
COLLECTIONS = ("models", "diffusion_models", "unet")  # of all sorts of models: what is around them tells nothing


def find_role(path: Path | None, metadata: Mapping[str, str]) -> str | None:
    """The role of a network from its metadata, or else from the names of its file and folders.

    Names are asked from the file outwards, up to a folder of collected models. In diffusers-style folders
    `transformer/` beside an `sr/` is the first stage even where the folder around both is called "...1080p".
    """
    if metadata.get("role") in RECIPES:
        return metadata["role"]
    if path is None:
        return None
    path = Path(path).absolute()
    in_shards = path.name.lower().endswith(INDEX) or SHARD.fullmatch(path.name)
    names = [path.name, *(parent.name for parent in path.parents)][: 4 if in_shards else 3]
    first_stage = super_resolution = False
    for name, folder in zip(names, path.parents, strict=False):
        name = name.lower()
        if name in COLLECTIONS:
            return None
        super_resolution |= bool(SR.search(name))
        if name == "transformer" and any(is_folder(folder / sr) for sr in ("sr", "sr_transformer")):
            first_stage = True
        # The released networks of the first stage are "Base-1080p" and the like in diffusers' form.
        if not first_stage and (super_resolution or ("base" not in name and "distill" not in name)):
            for lines, p in ENLARGED.findall(name):
                if p or super_resolution:
                    return f"sr_{lines}p"
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
