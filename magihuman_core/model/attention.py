"""Attention over the packed sequence: whole, or local in time for the 1080p model."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .sequence import Segments

# q [B, L, heads, d], k and v [B, M, kv_heads, d] -> [B, L, heads, d]; scale 1/sqrt(d), no mask.
AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention."""
    return unfold_heads(F.scaled_dot_product_attention(*fold_heads(q, k, v)), length=q.shape[1])


def fold_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention whose heads share keys, as one in which they do not: equal numbers of heads, heads first.

    The queries of all heads that share a key stand one after another in one head. Without a mask each query is on its
    own, so nothing else changes: any kernel can do it. Not every kernel can share keys between heads, and PyTorch would
    otherwise fall back to one that holds all scores, or copy the keys for every head.
    q [B, L, heads, d], k and v [B, M, kv_heads, d] -> [B, kv_heads, heads / kv_heads * L, d], [B, kv_heads, M, d]
    """
    grouped = q.unflatten(2, (k.shape[2], -1))  # [B, L, kv_heads, heads / kv_heads, d]
    return grouped.permute(0, 2, 3, 1, 4).flatten(2, 3), k.transpose(1, 2), v.transpose(1, 2)


def unfold_heads(attended: Tensor, length: int) -> Tensor:
    """[B, kv_heads, heads / kv_heads * L, d] -> [B, L, heads, d]. length: L."""
    return attended.unflatten(2, (-1, length)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def local_attention(q: Tensor, k: Tensor, v: Tensor, clip: Segments, radius: int,
                    attention: AttentionFunction) -> Tensor:
    """A video token sees the latent frames within `radius` of its own and all audio and text, in one softmax.

    The keys that a frame sees are gathered for one plain attention, so no mask and no merging of partial results is
    needed. Audio and text see everything. q, k, v: the tokens of one clip.
    """
    if clip.frames <= radius + 1:  # every frame sees every other
        return attention(q, k, v)
    count = clip.video // clip.frames  # tokens of a frame
    out = []
    windows = zip(_windows(k, clip, radius), _windows(v, clip, radius), strict=True)
    for frame, (keys, values) in enumerate(windows):
        out.append(attention(q[:, frame * count : (frame + 1) * count], keys, values))
    out.append(attention(q[:, clip.video :], k, v))
    return torch.cat(out, 1)


def _windows(tokens: Tensor, clip: Segments, radius: int) -> Iterator[Tensor]:
    """Of each latent frame the keys, or values, that it sees: [B, n, kv_heads, d], in any order.

    A window holds one frame more and one less than the last. So where no gradient needs the old ones, all are views of
    one buffer, in which the new frame takes the place of the old one.
    """
    frames, tail = tokens[:, : clip.video].unflatten(1, (clip.frames, -1)), tokens[:, clip.video :]
    width, count = 2 * radius + 1, frames.shape[2]
    in_place = clip.frames >= width and not torch.is_grad_enabled()
    if in_place:
        B, _, heads, d = tail.shape
        buffer = tail.new_empty(B, heads, tail.shape[1] + width * count, d).transpose(1, 2)  # as kernels read it
        buffer[:, : tail.shape[1]] = tail
        places = buffer[:, tail.shape[1] :].unflatten(1, (width, count))
        places[:, :radius] = frames[:, :radius]
    for frame in range(clip.frames):
        last = frame + radius
        if in_place and last < clip.frames:
            places[:, last % width] = frames[:, last]
            yield buffer[:, : tail.shape[1] + min(last + 1, width) * count]
        else:  # windows that grow smaller, at the end
            yield torch.cat([tail, frames[:, max(0, frame - radius) : last + 1].flatten(1, 2)], 1)
