"""Linear layers whose weights stay in 8 bits: half of bf16's memory, and the same products.

    y = (x data^T) * scale        data: fp8 or int8 [outputs, inputs]; scale: fp32, one for each output

Every fp8 and int8 value is exact in bf16, so that data is brought to the dtype of x when it is needed, and what
is lost was lost when the weight was rounded. Only memory is saved: the products themselves run in x's dtype.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint.quantized import EIGHT_BITS


class QuantizedLinear(nn.Module):
    """A linear layer without bias on a weight in 8 bits, for inference. `weight` is the data."""

    def __init__(self, inputs: int, outputs: int, *, dtype: torch.dtype, device=None):
        super().__init__()
        data = torch.empty(outputs, inputs, dtype=dtype, device=device)
        scale = torch.empty(outputs, dtype=torch.float32, device=device)
        self.weight = nn.Parameter(data, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs], in x's dtype."""
        y = F.linear(x, self.weight.to(x.dtype))
        return (y * self.scale).to(x.dtype)


def linear(inputs: int, outputs: int, bias: bool = True, *, dtype: torch.dtype | None = None, device=None) -> nn.Module:
    """torch's linear layer, or one whose weight stays in 8 bits where dtype says so."""
    if dtype not in EIGHT_BITS:
        return nn.Linear(inputs, outputs, bias, device=device, dtype=dtype)
    if bias:
        raise ValueError("a quantized linear layer has no bias")
    return QuantizedLinear(inputs, outputs, dtype=dtype, device=device)


def compute_dtype_of(dtype: torch.dtype | None) -> torch.dtype | None:
    """What layers with weights of this dtype compute in, and what goes with them is kept in."""
    return torch.bfloat16 if dtype in EIGHT_BITS else dtype


def decoded(layer: nn.Module, rows: slice) -> Tensor:
    """Some rows of a linear layer's weight as numbers, fp32."""
    weight = layer.weight[rows].float()
    return weight * layer.scale[rows, None] if isinstance(layer, QuantizedLinear) else weight


# What networks of this package are built of where nobody gives them other layers.
operations = SimpleNamespace(Linear=linear, Embedding=nn.Embedding)
