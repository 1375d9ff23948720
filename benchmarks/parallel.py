"""What a second process gains: one forward pass by one rank and by two, on a thread each.

usage: python -m benchmarks.parallel [--quick]

Both ways are measured in turns by the same processes; while one rank computes alone the other waits. What is expected
follows from the time alone, the bytes that the ranks send each other (see magihuman_core/runtime/parallel.py), and how
fast such an exchange is by itself. On a machine that does other work besides, the two rarely run at once; what each of
them computed, by the processor's clock, then tells more than the clock on the wall.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from magihuman_core import DiTConfig, MagiHumanDiT, sequence_parallel
from magihuman_core.runtime.parallel import exchange, share_heads

from .measure import Row, command_line, fill_randomly, main, seconds

RANKS = 2
T, H, W, AUDIO, TEXT = 26, 24, 24, 103, 153  # 4,000 tokens
CONFIG = DiTConfig(
    layers=3, hidden=1024, head_dim=128, heads=8, kv_heads=2, video_channels=48, audio_channels=64, text_channels=3584,
    gelu_width=4096, swiglu_width=1024 * 8 // 3 // 4 * 4, sandwich_layers=(0,), gelu_layers=(0,),
)  # fmt: skip


def rows(quick: bool = False) -> list[Row]:
    """Speed-up, and what was expected."""
    frames = 4 if quick else T
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (folder, frames, 2 if quick else 9), nprocs=RANKS)
        turns = torch.load(Path(folder, "turns"), weights_only=True)
    columns = list(zip(*turns, strict=True))
    alone, busy_alone, together, busy, exchanged, _ = map(min, columns)
    tokens, usual = tokens_of(frames), median(columns[0]) / median(columns[2])
    expected = alone / (alone / RANKS + CONFIG.layers * exchanged)
    mebibytes = bytes_sent(CONFIG, tokens, RANKS, 4) / 2**20
    return [
        Row(f"{RANKS} ranks against one, a thread each, {tokens} tokens, best turns", alone / together, "times as fast",
            f"{alone:.2f} s and {together:.2f} s; by medians of {len(turns)} turns {usual:.2f} times"),
        Row("by the processor's clock", busy_alone / busy, "times as fast",
            f"{busy_alone:.2f} s and, on the busier rank, {busy:.2f} s"),
        Row("expected", expected, "times as fast", f"half the work, and {1000 * exchanged:.0f} ms in each block for "
            f"{mebibytes:.0f} MiB that each rank sends"),
    ]


def bytes_sent(config: DiTConfig, tokens: int, ranks: int, itemsize: int = 2) -> float:
    """What each rank sends in one block, in the mean, for attention to `tokens` tokens in all.

    Of its tokens it sends queries, keys and values of the other ranks' heads, and what its own heads attended of the
    other ranks' tokens. itemsize: bytes of a number in the dtype that attention is computed in.
    """
    keys = sum(kv.stop - kv.start for _, kv in share_heads(config.heads, config.kv_heads, ranks))
    return (ranks - 1) / ranks**2 * tokens * (2 * config.heads + 2 * keys) * config.head_dim * itemsize


def tokens_of(frames: int) -> int:
    return frames * H * W // 4 + AUDIO + TEXT


@torch.inference_mode()
def measure(rank: int, folder: str, frames: int, repeats: int) -> None:
    """What each rank does. The first one keeps seconds on the wall and of the busier rank's processor, of each turn:
    alone, together, and of a block's exchanges by themselves."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    dit = fill_randomly(MagiHumanDiT(CONFIG, device="meta"), "cpu").eval()
    both, tokens = sequence_parallel(dit), tokens_of(frames)
    generator = torch.Generator().manual_seed(0)
    clip = [torch.randn(shape, generator=generator) for shape in ((1, 48, frames, H, W), (1, 64, AUDIO),
                                                                  (1, TEXT, 3584))]
    share = torch.empty(int(bytes_sent(CONFIG, tokens, RANKS, 4)) // 4 // 2)  # one of two exchanges

    def talk() -> None:
        for _ in range(2):
            exchange([share] * RANKS, [share.numel()] * RANKS, None)

    turns = []
    for turn in range(repeats + 1):
        found = []
        for run, all_ranks in ((lambda: dit(*clip), False), (lambda: both(*clip), True), (talk, True)):
            dist.barrier()
            busy = time.process_time()
            found.append(seconds(run) if all_ranks or rank == 0 else 0.0)
            slowest = torch.tensor([time.process_time() - busy])
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
            found.append(float(slowest))
        if turn:  # the first warms up
            turns.append(found)
    dist.barrier()
    if rank == 0:
        torch.save(turns, Path(folder, "turns"))
    dist.destroy_process_group()


if __name__ == "__main__":
    raise SystemExit(main(rows, command_line(__doc__)))
