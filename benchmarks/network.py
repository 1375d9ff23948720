"""How much of a forward pass is matrix products and attention, and how much memory it needs.

usage: python -m benchmarks.network [--quick]

The ratio is (time of the bare matrix products and attention of the same shapes) / (time of our forward pass), both
measured in turns in one process: 1 where nothing else took any time.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from unittest.mock import patch

import torch
import torch.nn.functional as F

from magihuman_core import DiTConfig, InputError, MagiHumanDiT
from magihuman_core.runtime.fuse import fuse_elementwise

from .measure import Row, command_line, fill_randomly, interleaved, main, peak_resident

T, H, W, AUDIO, TEXT = 13, 16, 28, 51, 128
CONFIG = DiTConfig(
    layers=10, hidden=1024, head_dim=128, heads=8, kv_heads=2, video_channels=48, audio_channels=64, text_channels=3584,
    gelu_width=4096, swiglu_width=1024 * 8 // 3 // 4 * 4, sandwich_layers=(0, 1, 8, 9), gelu_layers=(0, 1),
)  # fmt: skip


def bare_products(dit: MagiHumanDiT, dtype: torch.dtype):
    """The same linear layers on the same numbers of tokens, and the same attention, and nothing else."""
    video, tokens = T * H * W // 4, T * H * W // 4 + AUDIO + TEXT
    segments = {"video": video, "audio": AUDIO, "text": TEXT, "shared": tokens}
    work = []
    for block in dit.blocks:
        for name, expert in block.experts.items():
            for layer in (m for m in expert.modules() if isinstance(m, torch.nn.Linear)):
                work.append((torch.randn(segments[name], layer.in_features, dtype=dtype), layer.weight))
    q = torch.randn(1, CONFIG.heads, tokens, CONFIG.head_dim, dtype=dtype)
    k, v = torch.randn(2, 1, CONFIG.kv_heads, tokens, CONFIG.head_dim, dtype=dtype)

    def run() -> None:
        for x, weight in work:
            F.linear(x, weight)
        for _ in dit.blocks:
            F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    return run


def rows(quick: bool = False) -> Iterator[Row]:
    """Ratios in fp32 and bf16, plain and fused, the peak of memory over the weights, and the wait for kernels."""
    with tempfile.TemporaryDirectory() as empty, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=empty):
        yield from measured(quick)


@torch.inference_mode()
def measured(quick: bool) -> Iterator[Row]:
    torch.manual_seed(0)
    clip = torch.randn(1, 48, T, H, W), torch.randn(1, 64, AUDIO), torch.randn(1, TEXT, 3584)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype)[6:]
        dit = fill_randomly(MagiHumanDiT(CONFIG, dtype=dtype, device="meta"), "cpu").eval()
        bare = bare_products(dit, dtype)
        dit(*(x[..., :4] if x.ndim == 5 else x for x in clip))  # the libraries' own buffers
        if dtype == torch.float32:
            most = peak_resident(lambda dit=dit: dit(*clip))
            yield Row("peak memory over the weights", None if most is None else most / 2**20, "MiB")
        for fuse in (False, True):
            words = f"bare products and attention / forward, {name}, {'fused' if fuse else 'plain'}"
            started = time.perf_counter()
            try:
                fuse_elementwise(dit, fuse, "cpu")
            except InputError as error:
                yield Row(words, None, note=str(error))
                continue
            dit(*clip)  # compiles
            first = time.perf_counter() - started
            products, forward = interleaved(bare, lambda dit=dit: dit(*clip), repeats=2 if quick else 7)
            yield Row(words, products / forward, note=f"{products:.3f} s of {forward:.3f} s")
            if fuse:
                yield Row(f"first use of fusing, {name}, no kernel in the cache", first - forward, "s")


if __name__ == "__main__":
    raise SystemExit(main(rows, command_line(__doc__)))
