"""How much of a forward pass is matrix products and attention, and how much memory it needs.

usage: python benchmarks/network.py [--repeats N]

Prints the ratio (time of the bare matrix products and attention of the same shapes) / (time of our forward
pass), both measured in turns in this process, and the peak of resident memory over the weights.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from process_memory import resident

from magihuman_core import DiTConfig, MagiHumanDiT

T, H, W, AUDIO, TEXT = 13, 16, 28, 51, 128
CONFIG = DiTConfig(
    layers=10, hidden=1024, head_dim=128, heads=8, kv_heads=2, video_channels=48, audio_channels=64, text_channels=3584,
    gelu_width=4096, swiglu_width=1024 * 8 // 3 // 4 * 4, sandwich_layers=(0, 1, 8, 9), gelu_layers=(0, 1),
)  # fmt: skip


def bare_products(dit: MagiHumanDiT):
    """The same linear layers on the same numbers of tokens, and the same attention, and nothing else."""
    video, tokens = T * H * W // 4, T * H * W // 4 + AUDIO + TEXT
    segments = {"video": video, "audio": AUDIO, "text": TEXT, "shared": tokens}
    work = []
    for block in dit.blocks:
        for name, expert in block.experts.items():
            for layer in (m for m in expert.modules() if isinstance(m, torch.nn.Linear)):
                work.append((torch.randn(segments[name], layer.in_features), layer.weight))
    q = torch.randn(1, CONFIG.heads, tokens, CONFIG.head_dim)
    k, v = torch.randn(2, 1, CONFIG.kv_heads, tokens, CONFIG.head_dim)

    def run() -> None:
        for x, weight in work:
            F.linear(x, weight)
        for _ in dit.blocks:
            F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    return run


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    dit = MagiHumanDiT(CONFIG).eval()
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    clip = torch.randn(1, 48, T, H, W), torch.randn(1, 64, AUDIO), torch.randn(1, TEXT, 3584)
    with torch.inference_mode():
        dit(*(x[..., :4] if x.ndim == 5 else x for x in clip))  # the libraries' own buffers
        Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
        before = resident("VmRSS")
        dit(*clip)
        print(f"peak memory over the weights: {(resident('VmHWM') - before) / 2**20:.0f} MB")
        bare = bare_products(dit)
        times = [(seconds(bare), seconds(lambda: dit(*clip))) for _ in range(args.repeats)]
    products, forward = (min(column) for column in zip(*times, strict=True))
    print(f"products and attention {products:.3f} s, forward {forward:.3f} s, ratio {products / forward:.3f}")


if __name__ == "__main__":
    main()
