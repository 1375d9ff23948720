"""ComfyUI's layers as the core's modules need them."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.ops
import torch
import torch.nn.functional as F
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

if TYPE_CHECKING:
    from comfy.ops import CastWeightBiasOp

    Linear: Any = torch.nn.Linear
else:
    Linear = object  # HoldsWeight is mixed into whichever of ComfyUI's layers there is


class LoadedLayers(comfy.ops.manual_cast):
    """ComfyUI's layers, which cast and offload, with weights that are there from the start.

    With dynamic memory management ComfyUI's Linear and Embedding have no weight until a state dict brings
    it, unless they bring their own way of reading one: then they are built as in torch. The core's loader
    needs that, as it fills weights one by one.
    """

    class Linear(comfy.ops.manual_cast.Linear):
        _load_from_state_dict = torch.nn.Linear._load_from_state_dict

    class Embedding(comfy.ops.manual_cast.Embedding):
        _load_from_state_dict = torch.nn.Embedding._load_from_state_dict


Operations: Any = LoadedLayers  # the core's protocol is met by a class, which mypy cannot tell


def quantized_operations(compute_dtype: torch.dtype, device) -> Any:
    """ComfyUI's layers for quantized weights, which bring their weights with a state dict, and plain embeddings."""
    asked = SimpleNamespace(quant_config={"mixed_ops": True})
    layers = comfy.ops.pick_operations(None, compute_dtype, load_device=device, model_config=asked)
    return type("QuantizedOperations", (layers,), {"Embedding": Operations.Embedding})


class HoldsWeight(Linear):
    """Mixed into ComfyUI's linear layers: while held, many calls share what it costs to bring the weight in.

    ComfyUI copies, casts, decodes and patches a layer's weight at every call. See weights_held in nn/operations.py.
    """

    _held = None

    @contextmanager
    def hold(self, x: Tensor) -> Iterator[None]:
        """Bring the weight in once for many calls with inputs like x."""
        if getattr(self, "pre_quant_scale", None) is not None:  # the input is changed too: by the layer itself
            yield
            return
        quantized = multiplies_quantized(self)
        weight, bias, stream = comfy.ops.cast_bias_weight(
            self, dtype=x.dtype, device=x.device, bias_dtype=x.dtype, offloadable=True, compute_dtype=x.dtype,
            want_requant=quantized)
        if stream is not None and stream[0] is not None and comfy.model_management.NUM_STREAMS < 2:
            # It lies in the stream's buffer, which the next weight overwrites; with two streams each has its own.
            weight, bias = weight.clone(), None if bias is None else bias.clone()
        try:
            self._held = with_weight(self, weight, bias).forward if quantized else partial(
                F.linear, weight=weight.dequantize() if isinstance(weight, QuantizedTensor) else weight, bias=bias)
            yield
        finally:
            self._held = None
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs) if self._held is None else self._held(*args, **kwargs)


def multiplies_quantized(layer: "CastWeightBiasOp") -> bool:
    """Whether a layer multiplies its weight in the format it is kept in, rather than decode it."""
    return (getattr(layer, "layout_type", None) is not None and not getattr(layer, "_full_precision_mm", False)
            and not getattr(layer, "comfy_force_cast_weights", False)
            and not layer.weight_function and not layer.bias_function)


def copied_bytes(layers: Iterable[Any], dtype: torch.dtype) -> int:
    """Bytes of the weights that these layers decode or cast to compute in a dtype, all held at once."""
    return sum(dtype.itemsize * layer.in_features * layer.out_features for layer in layers
               if layer.weight is not None and not multiplies_quantized(layer)
               and (isinstance(layer.weight, QuantizedTensor) or layer.weight.dtype != dtype))


def with_weight(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    """A layer of the same kind on a weight that is at hand, so that nothing is left to bring in."""
    stand_in = copy.copy(layer)
    stand_in.__dict__.pop("_v", None)  # of dynamic memory management: where the weight would come from
    stand_in.__dict__.pop("forward", None)  # of LoRA in bypass mode: the real layer's, which would call this one again
    stand_in._parameters = {
        name: None if tensor is None else torch.nn.Parameter(tensor, requires_grad=False)
        for name, tensor in (("weight", weight), ("bias", bias))}
    return stand_in


def holding(operations: Any) -> Any:
    """The same layers, whose linear ones can hold their weights; those of other packs stay as they are."""
    linear = operations.Linear
    if linear.__module__ != comfy.ops.__name__ or linear.__qualname__.startswith(("fp8_ops", "cublas_ops")):
        return operations
    return type("HoldingOperations", (operations,), {"Linear": type("Linear", (HoldsWeight, linear), {})})
