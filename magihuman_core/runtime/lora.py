"""LoRA: small changes of the network's weights, trained apart from it.

    official layer, or a part of one  ->  rows of our layers  ->  y = W x + strength * up (down x)

Every layer that a file names is some rows of some of our layers (see weights/lora_names.py), and so is its `up`
matrix; `down` is common to all of them.

The weights themselves are not touched: a LoRA is computed beside them. That costs little more than a few
tokens would, loses nothing to the rounding of bf16, works on quantized and on streamed weights, and
taking it away leaves every weight as it was, bit for bit.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint.checkpoint import Checkpoint, as_checkpoint, without_content
from ..checkpoint.finite import check_finite
from ..checkpoint.header import quoted
from ..errors import CheckpointError, InputError, shown
from ..model.config import DiTConfig
from ..model.dit import MagiHumanDiT
from ..nn.layers import RMSNorm
from ..nn.quantized_linear import NarrowLinear, dequantized_rows
from ..weights.fused import Part
from ..weights.lora_alpha import with_stated_alpha
from ..weights.lora_names import SPELLINGS, by_layer, layer_names, listed, lora_targets
from ..weights.open import open_checkpoint

PIECE = 1 << 23  # numbers in fp32 at a time for DoRA: what it needs beside the network's own work stays small

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Delta:
    """A change of the rows `place` of one of our weights.

    up @ down * scale where there is a `down`, [r, in]; else `up` itself: [rows, in], or [rows] for a norm or bias.
    magnitude: the lengths that the changed rows get (DoRA), [rows].
    """

    place: slice
    up: Tensor
    down: Tensor | None = None
    scale: float = 1.0
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class SplitLora:
    """A file's content by our keys, and the names that fit nothing, with the reason."""

    deltas: Mapping[str, list[Delta]]
    unmatched: Mapping[str, str]


def split_lora(tensors: Mapping[str, Tensor], config: DiTConfig) -> SplitLora:
    """Sort a file's tensors by the weights of ours that they change.

    Raises CheckpointError where a tensor's shape or values fit no network of this configuration.
    """
    tensors = with_stated_alpha(as_checkpoint(tensors, "The LoRA"), SPELLINGS["down"])
    name = tensors.name
    table = lora_targets(config)
    layers, unmatched = by_layer(tensors, layer_names(table))
    deltas: dict[str, list[Delta]] = {}
    for layer, keys in layers.items():
        found = {role: _read(tensors, key, name) for role, key in keys.items()}
        found, reasons = _usable(found, layer)
        unmatched.update({keys[role]: reason for role, reason in reasons.items()})
        height = table[layer][-1].rows.stop
        for role in ("up", "diff"):
            if role in found and height is not None and found[role].shape[0] != height:
                raise CheckpointError(f"{name}: {quoted(keys[role])} has {found[role].shape[0]} rows, the network's "
                                      f"layer has {height}. It was made for another model.")
        for target in table[layer]:
            for key, delta in _deltas(found, target):
                deltas.setdefault(key, []).append(delta)
    return SplitLora(deltas, unmatched)


def _read(tensors: Mapping[str, Tensor], key: str, name: str) -> Tensor:
    tensor = tensors[key]
    tensor = tensor if tensor.is_floating_point() else tensor.float()
    check_finite(tensor, key, name)
    return tensor


def _usable(found: dict[str, Tensor], layer: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What of a layer's tensors makes sense together, and why the others do not."""
    reasons: dict[str, str] = {}
    down, up, magnitude = found.get("down"), found.get("up"), found.get("magnitude")
    if down is None or up is None:
        reasons |= dict.fromkeys(("down", "up"), "the other one of up and down is missing")
    elif down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1] or 0 in down.shape:
        reasons |= dict.fromkeys(("down", "up"), "up and down do not fit each other")
    if reasons:
        reasons |= dict.fromkeys(("alpha", "magnitude"), "its up and down are missing")
    elif up is not None and magnitude is not None and (
        magnitude.numel() != up.shape[0] or magnitude.shape[:1] != up.shape[:1]
    ):
        reasons |= dict.fromkeys(("down", "up", "alpha", "magnitude"), "only DoRA with one magnitude per row is known")
    if "alpha" in found and not reasons and found["alpha"].numel() != 1:
        reasons["alpha"] = "alpha is one number, here it is not; the factor 1 is used"
    if "diff" in found and found["diff"].dim() == 0:
        reasons["diff"] = "a difference has the shape of its weight"
    if "diff_b" in found and not layer.startswith("adapter."):
        reasons["diff_b"] = "this layer has no bias"
    left = {role: tensor for role, tensor in found.items() if role not in reasons}
    return left, {role: reason for role, reason in reasons.items() if role in found}


def _deltas(found: Mapping[str, Tensor], target: Part):
    """(our key, change) for what a file has for a layer."""
    if "up" in found:
        up, down = found["up"], found["down"]
        scale = float(found["alpha"]) / down.shape[0] if "alpha" in found else 1.0
        magnitude = found["magnitude"].reshape(-1)[target.rows] if "magnitude" in found else None
        yield target.key, Delta(target.place, up[target.rows], down, scale, magnitude)
    if "diff" in found:
        yield target.key, Delta(target.place, found["diff"][target.rows])
    if "diff_b" in found:
        yield target.key.removesuffix("weight") + "bias", Delta(slice(None), found["diff_b"])


class Handle(Protocol):
    """What takes a change away again."""

    def remove(self) -> None: ...


class AppliedLora:
    """A LoRA at work in a network. `matched`: our weights it changes; `unmatched`: names that fit nothing, and why."""

    def __init__(self, name: str, matched: list[str], unmatched: Mapping[str, str], handles: list[Handle]):
        self.name, self.matched, self.unmatched = name, matched, unmatched
        self._handles = handles

    def remove(self) -> None:
        """Take it out of the network. Nothing happens when it is out already."""
        while self._handles:
            self._handles.pop().remove()


def apply_lora(dit: MagiHumanDiT, source, strength: float = 1.0) -> AppliedLora:
    """Let a LoRA work in a network until it is removed; several may, in any order.

    source: a file or a mapping of tensors. strength: 1 is what it was trained for, 0 nothing, below 0 the opposite.
    Each of several DoRAs scales the rows as if it were alone.
    Names that fit nothing are logged as a warning, and are in the result's `unmatched`. Raises CheckpointError
    where the source is no LoRA, nothing fits or shapes differ, InputError for the strength.
    """
    check_strength(strength)
    checkpoint = open_checkpoint(source, "lora")
    split = split_lora(checkpoint, dit.config)
    _require_changes(checkpoint, split)
    device = dit.get_buffer("adapter.rope.bands").device
    planned = [_change(dit, key, delta, strength, device, checkpoint.name)
               for key, deltas in split.deltas.items() for delta in deltas]
    applied = [apply() for apply in planned]  # only now, so that a file is applied as a whole or not at all
    if split.unmatched:
        log.warning("%s: %d of its %d tensors are left out: %s.", checkpoint.name, len(split.unmatched),
                    len(checkpoint), listed(split.unmatched))
    log.info("%s: changes %d of the network's weights, with strength %g.", checkpoint.name, len(split.deltas), strength)
    return AppliedLora(checkpoint.name, list(split.deltas), split.unmatched, applied)


def check_lora(source, config: DiTConfig) -> None:
    """Raise CheckpointError unless a LoRA can be applied to a network of this configuration.

    For what a file is and whom it fits; values of its large tensors are not read.
    """
    checkpoint = open_checkpoint(source, "lora")
    _require_changes(checkpoint, fit_lora(checkpoint, config))


def fit_lora(checkpoint: Checkpoint, config: DiTConfig) -> SplitLora:
    """What a LoRA would change, without its content. Raises CheckpointError where a shape differs."""
    split = split_lora(without_content(checkpoint), config)
    weights = dict(MagiHumanDiT(config, device="meta").named_parameters())
    for key, deltas in split.deltas.items():
        for delta in deltas:
            check_delta(delta, key, weights[key], checkpoint.name)
    return split


def _require_changes(checkpoint: Checkpoint, split: SplitLora) -> None:
    if not split.deltas:
        names = ", ".join(quoted(key) for key in list(checkpoint)[:3])
        raise CheckpointError(f"{checkpoint.name}: none of its {len(checkpoint)} tensors belongs to this network; "
                              f"the first are {names}. Choose a LoRA made for MagiHuman.")


def check_strength(strength: float) -> None:
    """Raise InputError unless a LoRA can be applied with this strength."""
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not -100 <= strength <= 100:
        raise InputError(f"The strength of a LoRA is {shown(strength)}, expected a number, such as 1.0.")


def check_delta(delta: Delta, key: str, weight: Tensor, name: str) -> None:
    """Raise CheckpointError unless a change has the shape of its place in the weight."""
    shape = (len(range(*delta.place.indices(weight.shape[0]))), *weight.shape[1:])
    found = tuple(delta.up.shape) if delta.down is None else (delta.up.shape[0], delta.down.shape[1])
    if found != shape:
        raise CheckpointError(f"{name}: its change of {quoted(key)} has shape {list(found)}, expected {list(shape)}. "
                              "It was made for another model.")


def _change(dit: nn.Module, key: str, delta: Delta, strength: float, device: torch.device,
            name: str) -> Callable[[], Handle]:
    """Check a change of one parameter, and return what applies it."""
    path, _, leaf = key.rpartition(".")
    module = dit.get_submodule(path)
    parameter = getattr(module, leaf)
    check_delta(delta, key, parameter, name)
    # 8-bit weights are decoded to bf16 before they are multiplied; so is what goes beside them.
    dtype = parameter.dtype if parameter.dtype.itemsize > 1 else torch.bfloat16
    down = None if delta.down is None else delta.down.to(device, dtype)
    delta = replace(delta, up=delta.up.to(device, dtype), down=down)
    if parameter.dim() == 2:
        return partial(Attached, module, LinearHook(delta, strength))
    if leaf == "bias":
        return partial(Attached, module, BiasHook(delta.up * strength))
    return partial(cast(RMSNorm, module).change_weight, delta.up * strength)


class Attached:
    """A module that runs as a forward hook of a layer, whose part it is: its tensors go where the layer's go."""

    def __init__(self, layer: nn.Module, hook: nn.Module):
        self.layer, self.name = layer, next(name for name in map("lora_{}".format, count()) if not hasattr(layer, name))
        layer.add_module(self.name, hook)
        self.handle = layer.register_forward_hook(hook)

    def remove(self) -> None:
        """Take it from the layer."""
        self.handle.remove()
        delattr(self.layer, self.name)


class LinearHook(nn.Module):
    """Adds what a change of a linear layer's weight makes of the same input. No state dict shows its tensors."""

    up: Tensor
    down: Tensor | None
    magnitude: Tensor | None
    factor: Tensor | None  # DoRA: new length of each row over its length before

    def __init__(self, delta: Delta, strength: float):
        super().__init__()
        self.place, self.scale, self.strength = delta.place, delta.scale, strength
        for name in ("up", "down", "magnitude"):
            self.register_buffer(name, getattr(delta, name), persistent=False)
        self.register_buffer("factor", None, persistent=False)

    def forward(self, layer: nn.Linear | NarrowLinear, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """What the layer gives, changed in place: of its inputs (x [..., tokens, in],) [..., tokens, out]."""
        x = inputs[0] if self.down is None else F.linear(inputs[0], self.down.to(inputs[0].dtype))
        up = self.up.to(x.dtype)
        if self.magnitude is None:
            out[..., self.place].add_(F.linear(x, up), alpha=self.scale * self.strength)
            return out
        if self.factor is None:  # only now: streamed weights come in just before they are used
            self.factor = self._find_factor(layer, self.magnitude)
        # y + strength * (factor * (y + scale * up x) - y), a few tokens at a time
        kept, added = 1 + self.strength * (self.factor - 1), self.strength * self.scale * self.factor
        tokens = max(1, PIECE // len(up))
        for start in range(0, x.shape[-2], tokens):
            span = slice(start, start + tokens)
            rows = out[..., span, self.place]
            rows.copy_((rows * kept).addcmul_(F.linear(x[..., span, :], up), added))
        return out

    def _find_factor(self, layer: nn.Linear | NarrowLinear, magnitude: Tensor) -> Tensor:
        """Magnitudes over the lengths of the rows of the layer's weight + scale * up @ down, fp32 [rows]."""
        assert self.down is not None  # noqa: S101  only a difference has none, and that has no magnitudes
        down, parts = self.down.float() * self.scale, []
        begin, end, _ = self.place.indices(layer.weight.shape[0])
        rows = max(1, PIECE // layer.weight.shape[1])
        for top, up in zip(range(begin, end, rows), self.up.split(rows), strict=True):
            weight = dequantized_rows(layer, slice(top, top + len(up)))
            parts.append(torch.addmm(weight, up.float(), down).norm(dim=1))
        lengths = torch.cat(parts)
        return magnitude.to(lengths) / lengths.clamp_min(torch.finfo(torch.float32).tiny)


class BiasHook(nn.Module):
    """Adds a change of a layer's bias."""

    change: Tensor

    def __init__(self, change: Tensor):
        super().__init__()
        self.register_buffer("change", change, persistent=False)

    def forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """What the layer gives, and the change."""
        return out + self.change
