"""Local attention against attention of every token to all, and against what it would be without any cost of its own.

usage: python -m benchmarks.attention [--quick]

Times are taken in turns in one process. The ideal is by the number of pairs of tokens that see each other.
"""

from collections.abc import Iterator

import torch

from magihuman_core.model.attention import local_attention, sdpa
from magihuman_core.model.sequence import Segments

from .measure import Row, command_line, interleaved, main

HEADS, KV_HEADS, HEAD_DIM, RADIUS, TAIL = 8, 2, 128, 11, 300
SIZES = {"small frames": (63, 112), "frames of 1080p": (26, 2040)}  # latent frames, tokens of each


@torch.inference_mode()
def rows(quick: bool = False) -> Iterator[Row]:
    """How many times faster than full attention, in fp32 and bf16."""
    torch.manual_seed(0)
    for name, (frames, count) in list(SIZES.items())[: 1 if quick else None]:
        clip = Segments(0, frames * count, TAIL, 0, frames)
        seen = sum(min(frames, frame + RADIUS + 1) - max(0, frame - RADIUS) for frame in range(frames)) * count**2
        ideal = clip.tokens**2 / (seen + TAIL * (2 * clip.video + TAIL))
        for dtype in (torch.float32, torch.bfloat16):
            q, k, v = (torch.randn(1, clip.tokens, heads, HEAD_DIM, dtype=dtype)
                       for heads in (HEADS, KV_HEADS, KV_HEADS))
            full, local = interleaved(lambda q=q, k=k, v=v: sdpa(q, k, v),
                                      lambda q=q, k=k, v=v, clip=clip: local_attention(q, k, v, clip, RADIUS, sdpa),
                                      repeats=1 if count > 1000 else 3 if quick else 7)
            yield Row(f"full / local attention, {name} ({frames} of {count} tokens), {str(dtype)[6:]}", full / local,
                      note=f"ideal {ideal:.2f}; {local:.3f} s")


if __name__ == "__main__":
    raise SystemExit(main(rows, command_line(__doc__)))
