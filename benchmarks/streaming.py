"""One step of a network as large as the released ones (15.3 billion weights) on a machine that cannot hold it.

usage: python benchmarks/streaming.py [--resident 0] [--dtype bf16|fp32] [--keep bf16|fp8|int8] [--from file|memory]
                                      [--steps 2] [--folder /tmp]

Makes a file with the released keys, shapes and dtypes in --folder, with holes for zeros and small random
values in embedders and heads (so it takes no space and is read without a disk), streams its blocks through
two buffers, and deletes it. Prints the time of each step, the peak of resident memory, and what was
estimated. The first step reads with nothing in the page cache; a disk's speed comes on top.
"""

import argparse
import json
import struct
import tempfile
import time
from math import prod
from pathlib import Path

import torch
from process_memory import resident

from magihuman_core import DiTConfig, load_dit
from magihuman_core.runtime.memory import estimate
from magihuman_core.runtime.streaming import streamer_of
from magihuman_core.sizes import byte_size

KEYS = Path(__file__).parents[1] / "tests" / "data" / "real_config" / "dit_keys.json"
LATENT, AUDIO, TEXT = (2, 4, 4), 5, 32  # frames, height, width in latent cells; tokens
KEEP = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "int8": torch.int8}
NAMES = {"torch.bfloat16": ("BF16", 2), "torch.float32": ("F32", 4)}


def write_network(path: Path, dtype: str) -> None:
    """The released network with holes: only embedders, heads and rotary bands have values."""
    header, end, filled = {}, 0, {}
    for key, spec in json.loads(KEYS.read_text())["keys"].items():
        stored = "torch.float32" if dtype == "fp32" else spec["dtype"]
        name, width = NAMES[stored]
        length = width * prod(spec["shape"])
        header[key] = {"dtype": name, "shape": spec["shape"], "data_offsets": [end, end + length]}
        if key.startswith(("adapter.", "final_linear")):
            filled[key] = (end, torch.randn(spec["shape"]).mul_(0.02).to(getattr(torch, stored[6:])))
        end += length
    text = json.dumps(header).encode()
    text = text.ljust(len(text) + -len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
        for begin, values in filled.values():
            file.seek(8 + len(text) + begin)
            file.write(values.flatten().view(torch.uint8).numpy().tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resident", type=int, default=0, help="blocks that stay in memory")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="of the file")
    parser.add_argument("--keep", choices=KEEP, default="bf16", help="how weights are kept once they are read")
    parser.add_argument("--from", dest="source", choices=("file", "memory"), help="where streamed blocks come from")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--guided", action="store_true", help="two passes in each step, which share every fetch")
    parser.add_argument("--folder", default=None, help="where the file is made")
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, torch.inference_mode():
        path = Path(folder) / "network.safetensors"
        write_network(path, args.dtype)
        print(f"file: {byte_size(path.stat().st_size)}, on disk {byte_size(512 * path.stat().st_blocks)}")
        start = time.perf_counter()
        dit = load_dit(path, dtype=KEEP[args.keep], resident_blocks=args.resident, stream_from=args.source)
        print(f"loaded in {time.perf_counter() - start:.1f} s, {byte_size(resident('VmHWM'))} at the peak")
        c: DiTConfig = dit.config
        clip = (torch.randn(1, c.video_channels, *LATENT), torch.randn(1, c.audio_channels, AUDIO),
                torch.randn(1, TEXT, c.text_channels))
        for step in range(args.steps):
            start = time.perf_counter()
            outs = dit.forward_many([clip] * (1 + args.guided))
            assert all(bool(out.isfinite().all()) and bool(out.any()) for pair in outs for out in pair)
            print(f"step {step + 1}: {time.perf_counter() - start:.1f} s")
        print(f"peak of resident memory: {byte_size(resident('VmHWM'))}")
        streamer = streamer_of(dit.blocks)
        if streamer is not None:
            streamer.close()
        found = estimate(c, width=16 * LATENT[2], height=16 * LATENT[1], tokens=AUDIO, text_tokens=TEXT, device="cpu",
                         dtype=KEEP[args.keep], resident_blocks=args.resident, guided=args.guided)
        print(f"estimated, without Python and PyTorch themselves: {found}")


if __name__ == "__main__":
    main()
