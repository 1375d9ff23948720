"""Linear layers whose weights are kept in fewer bits than they compute in.

    y = (x data^T) * scale        data: fp8 or int8 [outputs, inputs]; scale: fp32, one for each output
    y = x data^T                  data: bf16, where a device without bf16 computes in fp32

Every fp8 and int8 value is exact in bf16, so that data is brought to the dtype of x when it is needed, and what
is lost was lost when the weight was rounded. Only memory is saved: the products themselves run in x's dtype.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)


class NarrowLinear(nn.Module):
    """A linear layer without bias, for inference, whose weight is kept in a dtype of its own, and computed with in x's.
    """

    def __init__(self, inputs: int, outputs: int, *, dtype: torch.dtype, device=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype, device=device), requires_grad=False)
        self._decoded: Tensor | None = None  # the weight in the dtype of x, while it is held

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs], in x's dtype."""
        return F.linear(x, self.weight.to(x.dtype) if self._decoded is None else self._decoded)

    @contextmanager
    def hold(self, x: Tensor) -> Iterator[None]:
        """Decode the weight once for many calls with inputs like x."""
        self._decoded = self.weight.to(x.dtype)
        try:
            yield
        finally:
            self._decoded = None


class QuantizedLinear(NarrowLinear):
    """A linear layer on a weight in 8 bits. `weight` is the data."""

    def __init__(self, inputs: int, outputs: int, *, dtype: torch.dtype, device=None):
        super().__init__(inputs, outputs, dtype=dtype, device=device)
        scale = torch.empty(outputs, dtype=torch.float32, device=device)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs], in x's dtype."""
        y = super().forward(x).float()  # here, since of a product of two dtypes a CPU would hold one more copy
        return y.mul_(self.scale).to(x.dtype)


def narrow_linears(module: nn.Module, dtype: torch.dtype | None, may_quantize: Callable[[str], bool],
                   compute_dtype: torch.dtype | None = None) -> None:
    """Replace linear layers by layers whose weights are in dtype, still to be filled.

    Of 8 bits, or another one than compute_dtype; else nothing changes.
    may_quantize: whether the weight of this name, such as blocks.3.mlp.down_proj.weight, may be in fewer bits.
    """
    if dtype is None or (dtype not in EIGHT_BITS and compute_dtype in (None, dtype)):
        return
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear) and may_quantize(f"{name}.weight"):
            owner, _, leaf = name.rpartition(".")
            kind = QuantizedLinear if dtype in EIGHT_BITS else NarrowLinear
            narrow = kind(layer.in_features, layer.out_features, dtype=dtype, device=layer.weight.device)
            setattr(module.get_submodule(owner), leaf, narrow)


def compute_dtype_of(dtype: torch.dtype) -> torch.dtype:
    """What layers with weights of this dtype compute in, and what goes with them is kept in."""
    return torch.bfloat16 if dtype in EIGHT_BITS else dtype


def dequantized_rows(layer: nn.Linear | NarrowLinear, rows: slice) -> Tensor:
    """Some rows of a linear layer's weight as numbers, fp32 [rows, inputs]."""
    weight = layer.weight[rows].float()
    return weight * layer.scale[rows, None] if isinstance(layer, QuantizedLinear) else weight
