"""The audio VAE's tensors under official keys, and its weight norm as a pair of tensors or as one."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..checkpoint.checkpoint import Checkpoint, renamed
from ..checkpoint.lazy_tensor import LazyTensor
from ..errors import CheckpointError


def row_norms(weight: Tensor) -> Tensor:
    """L2 norm of every entry of dimension 0, [n, ...] -> [n, 1, 1]."""
    return weight.flatten(1).norm(dim=1)[:, None, None]


def official_keys(checkpoint: Mapping[str, Tensor]) -> Checkpoint:
    """The VAE's tensors of a file, under official keys and without prefix.

    The prefix is found by the encoder's first layer, so the rest of Stable Audio Open falls away.
    torch's newer names of weight norm are translated. Raises CheckpointError when there is no VAE in it.
    """
    checkpoint = renamed(checkpoint, _old_weight_norm_name)
    marks = [key for key in checkpoint if key.endswith("encoder.layers.0.weight_v")]
    if not marks:
        raise CheckpointError(f"{checkpoint.name}: no audio VAE inside (no encoder.layers.0.weight_v). "
                              "Choose Stable Audio Open 1.0's model.safetensors or the VAE taken from it.")
    prefix = min(marks, key=len).removesuffix("encoder.layers.0.weight_v")
    parts = tuple(prefix + part for part in ("encoder.layers.", "decoder.layers."))
    return renamed(checkpoint, lambda key: key[len(prefix):] if key.startswith(parts) else None)


def _old_weight_norm_name(key: str) -> str:
    return key.replace(".parametrizations.weight.original0", ".weight_g").replace(
        ".parametrizations.weight.original1", ".weight_v")


def official_state_dict(vae: nn.Module) -> dict[str, Tensor]:
    """The weights of an audio VAE, or of its encoder or decoder, under official keys (weight_g, weight_v).

    vae: with folded weights, as it is loaded, or with torch's parametrization, as it is trained.
    """
    tensors: dict[str, Tensor] = {}
    for key, tensor in vae.state_dict().items():
        if key.endswith(".weight"):
            tensors[key + "_g"], tensors[key + "_v"] = row_norms(tensor), tensor
        else:
            tensors[_old_weight_norm_name(key)] = tensor
    return tensors


def folded(checkpoint: Checkpoint) -> Checkpoint:
    """Official tensors with every pair of g and v folded into one weight, when it is read."""
    entries = dict(checkpoint.entries)
    for key in checkpoint:
        if not key.endswith(".weight_v"):
            continue
        layer = key.removesuffix("_v")
        g, v = entries.pop(layer + "_g", None), entries.pop(key)
        if g is None:
            raise CheckpointError(f"{checkpoint.name}: {layer}_g is missing beside {key}. The file is "
                                  "incomplete; get it anew.")
        if g.shape != (*v.shape[:1], 1, 1):
            raise CheckpointError(f"{checkpoint.name}: {layer}_g has shape {list(g.shape)}, which does not fit {key} "
                                  f"of shape {list(v.shape)}. The file is damaged; get it anew.")
        entries[layer] = FoldedWeight(g, v)
    return checkpoint.with_entries(entries)


class FoldedWeight(LazyTensor):
    """The one weight that a weight-normed layer computes with, v times g over the norm of its rows.

    g [n, 1, 1], v [n, ...] -> [n, ...]; a norm is that of one row, so rows can be folded alone.
    """

    def __init__(self, g: LazyTensor, v: LazyTensor) -> None:
        super().__init__(v.shape, v.dtype)
        self.g, self.v = g, v

    def _read(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        v = self.v.read(torch.float32, (begin, end))
        g = self.g.read(torch.float32, (begin, end)).to(v.device)  # a dry run has large tensors elsewhere
        return v * (g / row_norms(v))
