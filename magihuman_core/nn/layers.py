"""Norm and activations, as the released weights were trained with them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


class RMSNorm(nn.Module):
    """x / rms(x) * (weight + 1) over the last axis, in fp32 whatever comes in."""

    def __init__(self, size: int, *, eps: float = EPS, dtype=torch.float32, device=None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.to(x.device, torch.float32) + 1, self.eps)


def gelu7(u: Tensor) -> Tensor:
    """min(u, 7) * sigmoid(1.702 * min(u, 7)), in fp32."""
    u = u.float().clamp(max=7)
    return u * (1.702 * u).sigmoid_()


def swiglu7(u: Tensor) -> Tensor:
    """[..., 2n] -> [..., n] in fp32; even columns are the gate, odd ones the linear part, both bounded by 7."""
    gate, linear = u.float().unflatten(-1, (-1, 2)).unbind(-1)
    gate, linear = gate.clamp(max=7), linear.clamp(-7, 7)
    gated = gate * (1.702 * gate).sigmoid_()
    return torch.addcmul(gated, gated, linear)  # gated * (linear + 1)
