"""LoRA adapters that are trained: y = W x + up (down x) beside the layers of a network that stays as it is.

They sit on the official layers, such as block.3.attention.linear_qkv, which are some rows of some of ours, and are
saved under their names; every loader here reads them. The network's weights may be in 8 bits, and may stream.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from magihuman_core.weights.fused import fused_parts
from magihuman_core.weights.lora_names import lora_targets
from training.common import Stop
from training.files import write

LAYERS = ("attention.linear_qkv", "attention.linear_proj", "mlp.up_gate_proj", "mlp.down_proj")


def official_layers(config, endings=LAYERS):
    """The official names of the layers with these endings."""
    names = [key.removesuffix(".weight") for key in fused_parts(config) if key.endswith(".weight")]
    return [name for name in names if name.endswith(tuple(endings))]


class Adapters(nn.Module):
    """`down` and `up` of every layer, and where their rows belong. At first they change nothing: up is zero."""

    def __init__(self, dit, rank, endings=LAYERS):
        super().__init__()
        table = lora_targets(dit.config)
        self.layers = official_layers(dit.config, endings)
        if not self.layers:
            raise Stop(f"No layer of the network ends with {' or '.join(endings)}: take some of {', '.join(LAYERS)}.")
        self.places = [table[name] for name in self.layers]
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for places in self.places:
            inputs = self.layer_of(dit, places[0]).weight.shape[1]
            outputs = sum(self.layer_of(dit, part).weight[part.place].shape[0] for part in places)
            self.down.append(nn.Parameter(torch.randn(rank, inputs) * inputs**-0.5))
            self.up.append(nn.Parameter(torch.zeros(outputs, rank)))

    @staticmethod
    def layer_of(dit, part):
        return dit.get_submodule(part.key.removesuffix(".weight"))

    def attach(self, dit):
        """Let them work in a network. Gradients reach them, and nothing else of it."""
        dit.requires_grad_(False)
        for places, down, up in zip(self.places, self.down, self.up, strict=True):
            for part in places:
                self.layer_of(dit, part).register_forward_hook(AdapterHook(down, up, part))
        return self

    def tensors(self):
        """What is saved: {official name: tensor}."""
        pairs = zip(self.layers, self.down, self.up, strict=True)
        return {f"diffusion_model.{name}.{leaf}.weight": tensor.detach()
                for name, down, up in pairs for leaf, tensor in (("lora_A", down), ("lora_B", up))}  # fmt: skip

    def save(self, path, **metadata):
        """A file of the adapters alone. Returns its size in bytes."""
        return write(path, {key: tensor.bfloat16() for key, tensor in self.tensors().items()}, kind="lora", **metadata)


class AdapterHook:
    """Adds to some rows of a layer's output what some rows of `up` make of its input."""

    def __init__(self, down, up, part):
        self.down, self.up, self.part = down, up, part

    def __call__(self, module, inputs, out):
        x = inputs[0]
        change = F.linear(F.linear(x, self.down.to(x.dtype)), self.up[self.part.rows].to(x.dtype))
        rows = out[..., self.part.place]
        rows += change.to(out.dtype)
        return out


def run_block(index, block, x, layout, attention):
    """A block whose intermediate results are not kept but computed again for the gradients.

    So a network larger than memory can be trained beside: its weights stream in once more in the other direction.
    """
    return checkpoint(block, x, layout, attention, use_reentrant=False)
