"""Attention over the packed sequence: whole, or local in time for the 1080p model."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .sequence import Layout

# q [B, L, heads, d], k and v [B, M, kv_heads, d] -> [B, L, heads, d]; scale 1/sqrt(d), no mask.
AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention, key/value heads shared by groups of query heads."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    shared = q.shape[1] != k.shape[1]
    if shared and q.is_cuda and q.dtype == torch.float32:
        # CUDA's fused kernel for fp32 does not share heads; without this it would hold all N x N scores.
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
        shared = False
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=shared).transpose(1, 2)


def local_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, radius: int,
                    attention: AttentionFunction) -> Tensor:
    """A video token sees the latent frames within `radius` of its own and all audio and text, in one softmax.

    The keys of each frame are one contiguous slice of the video plus the tail of the sequence, so
    no mask and no merging of partial results is needed. Audio and text see everything.
    """
    if layout.frames <= radius + 1:  # every frame sees every other
        return attention(q, k, v)
    tail = slice(layout.video, None)
    parts = [
        attention(q[:, tokens], torch.cat([k[:, window], k[:, tail]], 1), torch.cat([v[:, window], v[:, tail]], 1))
        for tokens, window in layout.local_windows(radius)]
    parts.append(attention(q[:, tail], k, v))
    return torch.cat(parts, 1)
