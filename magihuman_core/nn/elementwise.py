"""The elementwise work between matrix products, each piece of it one pure function.

In eager mode PyTorch runs each as several kernels, which move many times the bytes that go in and come out: norm and
cast, rotation and cast, gate and cast, activation and cast. `torch.compile` makes one kernel of each. Residual adds are
one kernel already: a sum of fp32 and bf16 casts on the way.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


def norm(x: Tensor, scale: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x / rms(x) * scale over the last axis, computed in fp32. scale: fp32 [size]."""
    return _rms_norm(x.float(), scale, eps).to(dtype)


def norm_rotate(x: Tensor, scale: Tensor, eps: float, sin: Tensor, cos: Tensor, dtype: torch.dtype) -> Tensor:
    """The norm of every head, turned by its rotary angle, in fp32. x: [B, L, heads, d]; sin, cos: [L, n]."""
    return apply_rotary(_rms_norm(x.float(), scale, eps), sin, cos).to(dtype)


def _rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """As F.rms_norm, which in eager mode on a CPU passes over the numbers twice as often."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.rms_norm(x, scale.shape, scale, eps)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x * torch.rsqrt(length * length / x.shape[-1] + eps)).mul_(scale)


def apply_rotary(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Rotate the leading channels of every head; the rest pass through.

    x: fp32 [B, L, heads, d]; sin, cos: [L, n] with 2n <= d. Channel i is paired with channel i + n.
    """
    n = sin.shape[-1]
    sin, cos = sin.unsqueeze(1), cos.unsqueeze(1)  # [L, 1, n]: one angle for all heads
    a, b, rest = x.split([n, n, x.shape[-1] - 2 * n], dim=-1)
    return torch.cat([(a * cos).addcmul_(b, sin, value=-1), (b * cos).addcmul_(a, sin), rest], dim=-1)


def gate(attended: Tensor, logits: Tensor, dtype: torch.dtype) -> Tensor:
    """attended [B, L, heads, d] * sigmoid(logits [B, L, heads]), in fp32."""
    return (attended.float() * torch.sigmoid(logits.float()).unsqueeze(-1)).to(dtype)


def gelu7(u: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """min(u, 7) * sigmoid(1.702 * min(u, 7)), in fp32."""
    u = u.float().clamp(max=7)
    return (u * (1.702 * u).sigmoid_()).to(dtype)


def swiglu7(u: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[..., 2n] -> [..., n]; even columns are the gate, odd ones the linear part, both bounded by 7, in fp32."""
    gate, linear = _even_and_odd(u)
    gate, linear = gate.clamp(max=7), linear.clamp(-7, 7)
    gated = gate * (1.702 * gate).sigmoid_()
    return torch.addcmul(gated, gated, linear).to(dtype)  # gated * (linear + 1)


def _even_and_odd(u: Tensor) -> tuple[Tensor, Tensor]:
    """The even columns and the odd ones of [..., 2n], fp32 [..., n].

    A kernel compiled for a CPU would read every second number one by one, which takes twice as long. So it reads each
    pair as one integer, of which the first number is the lower half; bf16 is the upper half of fp32.
    """
    if torch.compiler.is_compiling() and u.device.type == "cpu" and not u.requires_grad and u.is_contiguous():
        if u.dtype == torch.bfloat16:
            pairs = u.view(torch.int32)
            return (pairs << 16).view(torch.float32), (pairs & -(2**16)).view(torch.float32)
        if u.dtype == torch.float32:
            pairs = u.view(torch.int64)
            return pairs.to(torch.int32).view(u.dtype), (pairs >> 32).to(torch.int32).view(u.dtype)
    even, odd = u.float().unflatten(-1, (-1, 2)).unbind(-1)
    return even, odd


def scaled(y: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """y [..., n] * scale [n], in fp32."""
    return y.float().mul(scale).to(dtype)  # cast first: of a product of two dtypes a CPU holds one more copy


@dataclass(frozen=True)
class Elementwise:
    """These functions, as they are or compiled."""

    norm: Callable[..., Tensor] = norm
    norm_rotate: Callable[..., Tensor] = norm_rotate
    gate: Callable[..., Tensor] = gate
    gelu7: Callable[..., Tensor] = gelu7
    swiglu7: Callable[..., Tensor] = swiglu7
    scaled: Callable[..., Tensor] = scaled


EAGER = Elementwise()


@cache
def compiled() -> Elementwise:
    """The functions, to be compiled when they are first called: one graph each for all lengths, see `torch.compile`."""
    return Elementwise(**{f.name: torch.compile(getattr(EAGER, f.name), dynamic=True) for f in fields(Elementwise)})
