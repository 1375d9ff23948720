"""Linear layers whose weights are kept in fewer bits than they compute in.

    y = (x data^T) * scale        data: fp8 or int8 [outputs, inputs]; scale: fp32, one for each output
    y = x data^T                  data: bf16, where a device without bf16 computes in fp32

Every fp8 and int8 value is exact in bf16, so that data is brought to the dtype of x when it is needed, and what
is lost was lost when the weight was rounded. Only memory is saved: the products themselves run in x's dtype.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)


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


class CastLinear(nn.Linear):
    """A linear layer without bias that computes in x's dtype, whatever its weight is kept in."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs], in x's dtype."""
        return F.linear(x, self.weight.to(x.dtype))


NARROW = (QuantizedLinear, CastLinear)  # what keeps its weight in a dtype of its own


def narrow_linears(module: nn.Module, dtype: torch.dtype | None, may_quantize: Callable[[str], bool],
                   compute_dtype: torch.dtype | None = None) -> None:
    """Replace linear layers by layers whose weights are in dtype, still to be filled.

    Of 8 bits, or another one than compute_dtype; else nothing changes.
    may_quantize: whether the weight of this name, such as blocks.3.mlp.down_proj.weight, may be in fewer bits.
    """
    if dtype not in EIGHT_BITS and compute_dtype in (None, dtype):
        return
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear) and may_quantize(f"{name}.weight"):
            owner, _, leaf = name.rpartition(".")
            sizes, device = (layer.in_features, layer.out_features), layer.weight.device
            narrow = (QuantizedLinear(*sizes, dtype=dtype, device=device) if dtype in EIGHT_BITS
                      else CastLinear(*sizes, bias=False, dtype=dtype, device=device))
            setattr(module.get_submodule(owner), leaf, narrow)


def compute_dtype_of(dtype: torch.dtype) -> torch.dtype:
    """What layers with weights of this dtype compute in, and what goes with them is kept in."""
    return torch.bfloat16 if dtype in EIGHT_BITS else dtype


def dequantized_rows(layer: nn.Linear | QuantizedLinear, rows: slice) -> Tensor:
    """Some rows of a linear layer's weight as numbers, fp32 [rows, inputs]."""
    weight = layer.weight[rows].float()
    return weight * layer.scale[rows, None] if isinstance(layer, QuantizedLinear) else weight
