"""The norm, as the released weights were trained with it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .elementwise import EAGER, Elementwise

EPS = 1e-6


class RMSNorm(nn.Module):
    """x / rms(x) * (weight + 1) over the last axis, in fp32 whatever comes in."""

    elementwise: Elementwise = EAGER

    def __init__(self, size: int, *, eps: float = EPS, dtype=torch.float32, device=None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype, device=device))
        self._changes: list[Tensor] = []

    def scale(self, device: torch.device) -> Tensor:
        """What normalized values are multiplied by, fp32 [size]."""
        scale = self.weight.to(device, torch.float32) + 1
        for change in self._changes:
            scale = scale + change.to(scale)
        return scale

    def change_weight(self, change: Tensor) -> "WeightChange":
        """Compute with weight + change, such as a LoRA's, until the result's `remove` is called."""
        self._changes.append(change)
        return WeightChange(self._changes, change)

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The norm in a dtype, by default fp32."""
        return self.elementwise.norm(x, self.scale(x.device), self.eps, dtype or torch.float32)

    def rotated(self, x: Tensor, sin: Tensor, cos: Tensor, dtype: torch.dtype) -> Tensor:
        """The norm of every head of x [B, L, heads, size], turned by the rotary angles [L, n]."""
        return self.elementwise.norm_rotate(x, self.scale(x.device), self.eps, sin, cos, dtype)


@dataclass(frozen=True)
class WeightChange:
    """One change of a norm's weight, which can be taken away."""

    changes: list[Tensor]
    change: Tensor

    def remove(self) -> None:
        self.changes[:] = [other for other in self.changes if other is not self.change]
