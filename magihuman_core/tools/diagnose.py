"""What a checkpoint is good for: what to know of it, what would go wrong in loading it, and the memory it will need."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint.checkpoint import Checkpoint, without_content
from ..checkpoint.finite import is_finite
from ..checkpoint.header import quoted
from ..checkpoint.open import WRAPPED
from ..checkpoint.quantize import kept_wide, stored_dtype
from ..checkpoint.write import stored_hashes
from ..errors import CheckpointError, InputError
from ..loading.dit import load_dit
from ..loading.text_encoder import load_text_encoder
from ..loading.vae import load_audio_vae, load_turbo_vae, load_video_vae
from ..model.config import RELEASED
from ..recipes import DISTILLED, RECIPES
from ..runtime.cards import find_card
from ..runtime.lora import fit_lora
from ..runtime.memory import estimate
from ..runtime.work import in_words, work
from ..sizes import byte_size
from ..weights.comfyui_saved import TEXTS
from ..weights.dit_keys import network_config, split_official
from ..weights.lora_alpha import with_stated_alpha
from ..weights.lora_names import SPELLINGS, all_layer_names, by_layer, listed
from ..weights.open import open_checkpoint
from ..weights.precision import may_quantize
from ..weights.recognize import Recognized
from ..weights.text_encoder_keys import encoder_keys

LOADERS: Mapping[str, Callable[..., nn.Module]] = {
    "network": load_dit, "text_encoder": load_text_encoder, "turbo_vae": load_turbo_vae, "video_vae": load_video_vae,
    "audio_vae": load_audio_vae}
SHOWN_CARDS = [card for name in ("RTX 3060", "RTX 4090", "H100 80GB HBM3") if (card := find_card(name))]
LARGE_ENOUGH = 64  # elements: smaller tensors may honestly be zero
WITH_LESS = {  # how a part is run where less memory is free
    "network": "; with less it runs, too: layers wait in main memory",
    "text_encoder": "; with less it runs, too: layers wait in main memory",
    "turbo_vae": "; with less it runs, too: in squares", "video_vae": "; with less it runs, too: in squares"}


def describe_lora(checkpoint: Checkpoint, damaged: bool) -> Iterator[tuple[str, str]]:
    """What a LoRA changes, and, where it is not damaged, whether it fits the released networks."""
    layers, unmatched = by_layer(checkpoint, all_layer_names())
    down = [checkpoint.shape(keys["down"]) for keys in layers.values() if "down" in keys]
    ranks = sorted({shape[0] for shape in down if shape})
    parts = [f"{len(layers)} of MagiHuman's layers"]
    if ranks:
        parts.append(f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}")
    parts += [name for role, name in (("magnitude", "DoRA"), ("diff", "whole differences"))
              if any(role in keys for keys in layers.values())]
    yield "changes", ", ".join(parts)
    if layers and not damaged:
        try:
            unmatched = dict(fit_lora(checkpoint, RELEASED).unmatched)
        except CheckpointError as error:
            yield "note", "it is not for the released networks: " + without_path(error, checkpoint.name)
    stated = len(with_stated_alpha(checkpoint, SPELLINGS["down"])) > len(checkpoint)
    if layers and (stated or WRAPPED in checkpoint.metadata):
        what = "a configuration beside its tensors says how strong it is" if stated else "training wrapped its names"
        yield "note", f"{what}, which ComfyUI's own loader may not read: magihuman convert makes a file that it does"
    if unmatched:
        yield ("note" if layers else "problem"), f"without a place ({len(unmatched)}): {listed(unmatched)}"


def notes(checkpoint: Checkpoint, found: Recognized) -> Iterator[str]:
    """What a user should know although nothing is wrong with it."""
    if found.kind == "network":
        if found.role is None:
            yield "base, distilled and super-resolution networks look alike inside: choose the role yourself"
        small = [entry for key, entry in checkpoint.entries.items() if key.endswith("norm.weight")]
        if any(entry.dtype in (torch.bfloat16, torch.float16) for entry in small):
            yield "norms were stored in 16 bits by whoever packed this file; the original has them in 32"
        if found.quantization and "without scales" in found.quantization:
            yield "fp8 without scales loses small weights; a file with scales, or bf16, is better"
    if found.layout == "with decoder":
        yield "the decoder half is not used; only the encoder is read"
    if found.layout == "inside Stable Audio Open":
        yield "only the VAE inside this file is read"


def load_dry(checkpoint: Checkpoint, found: Recognized) -> nn.Module | None:
    """The module that a checkpoint loads to, without content; None of kinds that are not loaded by themselves.

    Raises CheckpointError: what would go wrong in loading it, found without reading the large tensors.
    """
    if found.kind not in LOADERS:
        return None
    texts = {key: entry for key, entry in checkpoint.entries.items() if key.rpartition(".")[2] in TEXTS}
    dry = without_content(checkpoint)
    dry = dry.with_entries({**dry.entries, **texts})
    return LOADERS[found.kind](open_checkpoint(dry, found.kind), device="meta")


def damage(checkpoint: Checkpoint, found: Recognized) -> Iterator[str]:
    """What is wrong with the values themselves: this reads every tensor."""
    hashes, changed, empty = stored_hashes(checkpoint.metadata), [], []
    for key, entry in checkpoint.entries.items():
        try:
            values = entry.read()
        except CheckpointError as error:
            yield without_path(error, checkpoint.name)
            continue
        if not is_finite(values):
            yield f"{quoted(key)} holds values that are not numbers or are infinite"
        data = values.contiguous().view(-1).view(torch.uint8).numpy()
        if key in hashes and hashlib.sha256(data.data).hexdigest() != hashes[key]:
            changed.append(key)
        if values.ndim > 1 and values.numel() >= LARGE_ENOUGH and not data.any():
            empty.append(key)
    if changed:
        yield (f"{len(changed)} tensors are not as they were written ({listed_keys(changed)}): download or convert it "
               "again")
    if empty and found.kind != "lora":  # which begins with zeros where nothing was learned
        yield (f"{len(empty)} tensors are zero throughout ({listed_keys(empty)}): the download may not have finished, "
               "or the disk was full")


def integrity(checkpoint: Checkpoint) -> str:
    """What can be said of a file that was read from end to end."""
    count = len(stored_hashes(checkpoint.metadata).keys() & set(checkpoint))
    if not count:
        return "it holds no hashes to compare with; magihuman convert writes them"
    return f"the SHA-256 of {count} of {len(checkpoint)} tensors, as they were written"


def listed_keys(keys: Sequence[str]) -> str:
    return ", ".join(map(quoted, keys[:3])) + (", ..." if len(keys) > 3 else "")


def estimates(checkpoint: Checkpoint, found: Recognized, config: Any, details: bool) -> Iterator[tuple[str, str]]:
    """What a module with this configuration needs on a GPU for a clip of the usual size, with labels.

    details: of what the memory consists, and what is computed.
    """
    recipe = RECIPES[found.role] if found.role else DISTILLED
    if found.kind == "network":
        config = replace(config, **recipe.overrides(config.layers))
    dtype, wide = (torch.float32, frozenset[str]()) if found.kind == "audio_vae" else _kept(checkpoint, found.kind)
    clip: dict[str, Any] = {"width": recipe.width, "height": recipe.height, "seconds": recipe.window, "dtype": dtype,
                            "guided": recipe.guidance is not None}
    try:
        needed = estimate(config, **clip, wide=wide)
        if not details:
            size = "" if found.kind in ("text_encoder", "audio_vae") else f" at {recipe.width}x{recipe.height}"
            yield "memory", (f"{byte_size(needed.total)} for {recipe.window:g} s{size} (estimated)"
                             f"{WITH_LESS.get(found.kind, '')}")
            return
        yield "memory", str(needed)
        each = "each step " if found.kind == "network" else ""
        yield "work", each + in_words(work(config, **clip), SHOWN_CARDS)
    except (RuntimeError, CheckpointError, InputError):  # whatever its sizes are, saying what a file is goes on
        return


def _kept(checkpoint: Checkpoint, kind: str) -> tuple[torch.dtype, frozenset[str]]:
    """What a part's large weights are kept in: 8 bits where they are stored so, else bf16; and which stay in that."""
    tensors = open_checkpoint(checkpoint, kind)
    if kind == "network":
        tensors = split_official(tensors, network_config(tensors))
    elif kind == "text_encoder":
        tensors = encoder_keys(tensors)
    else:
        return torch.bfloat16, frozenset()
    dtype = stored_dtype(tensors, may_quantize) or torch.bfloat16
    return dtype, kept_wide(tensors, dtype, may_quantize)


def without_path(error: ValueError, path: str | Path) -> str:
    """The message without the file's name, which stands above it already."""
    text = str(error).removeprefix(f"{path}: ").removeprefix(f"{os.fspath(path)}/")
    return text[:1].lower() + text[1:] if text[:2].istitle() else text
