"""LoRA files that name official weights, stacked or split, through ComfyUI's own LoRA nodes.

ComfyUI's loader matches a file's names with those of the model's state dict, one name to one weight. An
official weight, such as block.layers.0.attention.linear_qkv, is several of ours: one for each modality,
and the gate apart; one of a split checkpoint, such as linear_q_video, is some rows of ours. So the network
gets a tree of empty alias layers under all these names, which the loader finds; and the model patcher, where
patches arrive, splits each by its rows among the real weights.
"""

import logging
import re
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

import comfy.hooks
import comfy.lora
import comfy.utils
import torch
from comfy.model_patcher import get_key_weight
from comfy.quant_ops import QuantizedTensor
from comfy.weight_adapter.base import WeightAdapterBase
from comfy.weight_adapter.lora import LoRAAdapter
from torch import nn

from ...magihuman_core.checkpoint.open import WRAPPERS, unwrapped
from ...magihuman_core.errors import InputError
from ...magihuman_core.model.config import DiTConfig
from ...magihuman_core.weights.fused import Part
from ...magihuman_core.weights.lora_names import lora_targets
from .guidance import CheckedGuidance
from .network import ComfyDiT
from .saving import readable

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
else:
    ModelPatcher = object  # OfficialNames is mixed into whichever of ComfyUI's patchers there is

PREFIX = "diffusion_model."
AROUND = ("module.", "base_model.model.")  # what DataParallel and PEFT put before a name
MERGED = "magihuman_merged_role"  # attachment: the other role that was merged in
BLOCK = re.compile(r"block\.layers\.\d+\.")
MAGNITUDES = {"lora": 4, "loha": 7, "lokr": 8, "oft": 3, "glora": 5}  # where adapters have those of DoRA
log = logging.getLogger(__name__)


class AliasLayer(nn.Module):
    """An official layer's name with an empty weight: found by name, of no size, never run."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.empty(0))

    def __setattr__(self, name, value):
        if name == "forward":  # what bypass loading hooks into; here it would silently do nothing
            raise InputError("This LoRA names the official, stacked weights, which bypass mode cannot reach: load it "
                             "with Load LoRA instead.")
        super().__setattr__(name, value)


def add_alias_layers(network: ComfyDiT, config: DiTConfig) -> None:
    """Hang the official and the split names (all below `block`) onto the network.

    config: as the file has it; the network itself may be padded.
    """
    network.official_config = config
    layers = nn.ModuleList(nn.Module() for _ in range(config.layers))
    network.block = nn.Module()
    network.block.layers = layers
    for key in lora_targets(config):
        if not key.startswith("block."):
            continue  # the others have the same name here
        _, _, number, *path, leaf = key.split(".")
        module = layers[int(number)]
        for name in path:
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module.get_submodule(name)
        module.add_module(leaf, AliasLayer())


def is_alias(key: str) -> bool:
    """Whether a key of the network's state dict is an alias layer's."""
    return key.removeprefix(PREFIX).startswith(("block.", *WRAPPERS, *AROUND))


def wrapped_names(config: DiTConfig) -> dict[str, torch.Tensor]:
    """The official and the split names once more, as torch.compile, FSDP, DataParallel and PEFT have them.

    Of one wrapper each, around the network or around a block. They stand in the state dict alone, with an empty tensor:
    an attribute such as `_orig_mod` on the network would tell others that it is compiled.
    """
    return dict.fromkeys(_wrapped(config), torch.empty(0))


@cache
def _wrapped(config: DiTConfig) -> tuple[str, ...]:
    names = [f"{wrapper}{name}" for name in lora_targets(config) for wrapper in (*WRAPPERS, *AROUND)]
    names += [BLOCK.sub(rf"\g<0>{wrapper}", name) for name in lora_targets(config) for wrapper in WRAPPERS
              if BLOCK.match(name)]
    return tuple(f"{PREFIX}{name}.weight" for name in names)


def _unwrapped(key: str) -> str:
    name = unwrapped(key.removeprefix(PREFIX))
    for around in AROUND:
        name = name.removeprefix(around)
    return PREFIX + name


class SlicedAdapter(WeightAdapterBase):
    """Some rows of an adapter that cannot be sliced itself: its change is computed whole, then cut."""

    name = "magihuman_rows"

    def __init__(self, loaded_keys, weights):
        """weights: (the adapter, rows of its weight, which of them). ComfyUI makes every adapter anew from these two,
        with tensors that it brought to the device."""
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(self, weight, key, strength, strength_model, offset, function,
                         intermediate_dtype=torch.float32, original_weight=None):
        adapter, total, rows = self.weights
        whole = weight.new_zeros((total, *weight.shape[1:]))
        whole[rows] = weight
        return adapter.calculate_weight(
            whole, key, strength, strength_model, offset, function, intermediate_dtype, original_weight)[rows]


def slice_patch(patch, total: int, rows: slice):
    """The part of a patch for `total` rows that concerns `rows`; None where it cannot be told."""
    if isinstance(patch, LoRAAdapter) and patch.weights[3] is None and patch.weights[5] is None:
        up, down, alpha, _, dora, _ = patch.weights
        if dora is None or dora.shape[0] == total:
            dora = None if dora is None else dora[rows]
            return LoRAAdapter(patch.loaded_keys, (up[rows], down, alpha, None, dora, None))
    if isinstance(patch, WeightAdapterBase):
        if rows == slice(0, total):
            return patch
        return SlicedAdapter(patch.loaded_keys, (patch, total, rows)) if row_by_row(patch, rows) else None
    if isinstance(patch, tuple) and patch[0] in ("diff", "set"):
        return (patch[0], (patch[1][0][rows], *patch[1][1:]))
    return None


def row_by_row(adapter: WeightAdapterBase, rows: slice) -> bool:
    """Whether what an adapter makes of some rows of a weight depends on no others."""
    if adapter.name not in MAGNITUDES:  # such as BOFT, which turns all rows together
        return False
    if adapter.name == "oft":  # turns the rows of each block together
        size = adapter.weights[0].shape[1]
        if rows.start % size or rows.stop % size:
            return False
    # DoRA's magnitudes stand per row or per column; per column they are of the whole weight.
    magnitudes = adapter.weights[MAGNITUDES[adapter.name]]
    return magnitudes is None or magnitudes.ndim < 2 or magnitudes.shape[0] != 1


def split_patches(patches: dict, config: DiTConfig, shapes: dict[str, torch.Size]) -> tuple[dict, dict]:
    """(patches of our weights, {our key: the key it came from}) for patches of official and split names.

    config: of the file's network; shapes: our keys, with PREFIX -> shape, which may be padded. Patches of our own
    names pass unchanged where they fit. A patch of a part of a weight gets a key as ComfyUI has them for that: (our
    key, (dimension, first, count)).
    """
    table = lora_targets(config)
    split, origin = {}, {}
    for key, patch in patches.items():
        sent, name = key, _unwrapped(key if isinstance(key, str) else key[0])
        key = name if isinstance(key, str) else key
        targets = table.get(name.removeprefix(PREFIX).removesuffix(".weight"), [])
        if not is_alias(name):
            fits = isinstance(patch, list) or not targets or comfy_key(targets[0], config, shapes) == name
            if fits or not isinstance(key, str):
                split[key] = patch
                origin[key] = sent
                continue
        if isinstance(patch, list):
            continue  # merging of models walks over all names; the real weights bring their own patches
        for target in targets:
            part = slice_patch(patch, targets[-1].rows.stop, target.rows)
            place = comfy_key(target, config, shapes)
            if part is None or place is None:
                log.warning("%s: a patch of this kind cannot be applied to a stacked weight; it is left out.", name)
                continue
            split[place] = part
            origin[place] = sent
    return split, origin


def comfy_key(target: Part, config: DiTConfig, shapes: dict[str, torch.Size]):
    """ComfyUI's key for what a target means: our key, or (our key, part) where that is less than all of the weight."""
    key = PREFIX + target.key
    if key not in shapes or len(shapes[key]) < 2:
        return key if key in shapes else None
    rows, columns = shapes[key]
    if target.place.stop not in (None, rows) or target.place.start:
        return key, (0, target.place.start, target.place.stop - target.place.start)
    if ".mlp.down_proj." in key:
        inner = config.gelu_width if int(target.key.split(".")[1]) in config.gelu_layers else config.swiglu_width
        return key if inner == columns else (key, (1, 0, inner))
    return key


class FromModel(list):
    """A weight of another model with its patches, as merging hands it over, and that model's role."""

    def __init__(self, patch: list, role: str):
        super().__init__(patch)
        self.role = role


class OfficialNames(ModelPatcher):
    """Mixed into a model patcher: patches may name official weights."""

    def _add_split(self, add, patches: dict) -> list:
        other = next((patch.role for patch in patches.values() if isinstance(patch, FromModel)), self.model.role)
        if other != self.model.role and self.get_attachment(MERGED) is None:
            self.set_attachments(MERGED, other)
            log.warning("A %s model is merged with a %s one. The result is sampled as a %s model, like the first of "
                        "the two; choose another mode in MagiHuman Sampler where the second has the larger share.",
                        self.model.role, other, self.model.role)
        network = self.model.diffusion_model
        shapes = {PREFIX + name: weight.shape for name, weight in network.named_parameters()}
        split, origin = split_patches(patches, network.official_config, shapes)
        # The caller compares what was applied with the names it sent.
        return list({origin[key] for key in add(split)})

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        add = super().add_patches
        return self._add_split(lambda split: add(split, strength_patch, strength_model), patches)

    def add_hook_patches(self, hook, patches, strength_patch=1.0, strength_model=1.0):
        add = super().add_hook_patches
        return self._add_split(lambda split: add(hook, split, strength_patch, strength_model), patches)

    def model_state_dict(self, filter_prefix=None):
        """The weights, without alias layers and without what quantized ones have besides, such as scales.

        filter_prefix: given by nodes that compute with the values, which are therefore decoded.
        """
        own = {name for name, _ in chain(self.model.named_parameters(), self.model.named_buffers())}
        state = {}
        for key, value in super().model_state_dict(filter_prefix).items():
            if key not in own or is_alias(key):
                continue
            weight = get_key_weight(self.model, key)[0] if filter_prefix is not None else value
            state[key] = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        return state

    def get_key_patches(self, filter_prefix=None):
        role = self.model.role
        return {key: FromModel(patch, role) for key, patch in super().get_key_patches(filter_prefix).items()}

    def model_state_dict_for_saving(self, model=None, prefix=""):
        state = super().model_state_dict_for_saving(model, prefix)
        return readable(state, self, prefix) if prefix == PREFIX else state

    def patch_hook_weight_to_device(self, hooks, combined_patches, key, original_weights, memory_counter):
        """As ComfyUI does it, which copies into weights: of quantized ones that leaves the scales as they were."""
        weight, set_weight, _ = get_key_weight(self.model, key)
        if key not in combined_patches or not isinstance(weight, QuantizedTensor):
            super().patch_hook_weight_to_device(hooks, combined_patches, key, original_weights, memory_counter)
            return
        self.hook_backup.setdefault(key, (weight, weight.device))
        changed = comfy.lora.calculate_weight(combined_patches[key], weight.dequantize().float(), key,
                                              original_weights=original_weights)
        del original_weights[key]
        changed = set_weight(changed, seed=comfy.utils.string_to_seed(key), return_weight=True)
        comfy.utils.set_attr_param(self.model, key, changed)
        if self.hook_mode == comfy.hooks.EnumHookMode.MaxSpeed:
            self.cached_hook_patches.setdefault(hooks, {})[key] = changed.to(self.offload_device), weight.device

    def patch_cached_hook_weights(self, cached_weights, key, memory_counter):
        cached, device = cached_weights[key]
        if not isinstance(cached, QuantizedTensor):
            super().patch_cached_hook_weights(cached_weights, key, memory_counter)
            return
        weight = get_key_weight(self.model, key)[0]
        self.hook_backup.setdefault(key, (weight, weight.device))
        comfy.utils.set_attr_param(self.model, key, cached.to(device))

    def unpatch_hooks(self, whitelist_keys_set=None):
        for key, (weight, device) in list(self.hook_backup.items()):
            if isinstance(weight, QuantizedTensor) and (not whitelist_keys_set or key in whitelist_keys_set):
                del self.hook_backup[key]
                comfy.utils.set_attr_param(self.model, key, weight.to(device))
        super().unpatch_hooks(whitelist_keys_set)

    def clone(self, *args, **kwargs):
        copy = super().clone(*args, **kwargs)
        if not isinstance(copy, OfficialNames):  # asked for without dynamic memory, it comes as a plain patcher
            plain: type = type(copy)
            copy.__class__ = patcher_class(plain)
        return copy


@cache
def patcher_class(base: type) -> type:
    """ComfyUI's own patcher class, knowing official names, and holding nodes that set guidance to its shape."""
    return type("MagiHumanPatcher", (OfficialNames, CheckedGuidance, base), {})
