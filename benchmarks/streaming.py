"""One step of a network as large as the released ones (15.3 billion weights) on a machine that cannot hold it.

usage: python -m benchmarks.streaming [--quick] [--resident 0] [--dtype bf16|fp32] [--keep bf16|fp8|int8]
                                      [--from file|memory] [--steps 2] [--guided] [--folder /tmp]

Makes a file with the released keys, shapes and dtypes in --folder, with holes for zeros and small random
values in embedders and heads (so it takes no space and is read without a disk), streams its blocks through
two buffers, and deletes it. The first step reads with nothing in the page cache; a disk's speed comes on top.
--quick: the first eight layers alone.
"""

import json
import re
import struct
import tempfile
from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from magihuman_core import InputError, MagiHumanDiT, load_dit
from magihuman_core.runtime.memory import estimate
from magihuman_core.runtime.streaming import streamer_of

from .measure import Row, command_line, main, peak_resident, seconds

KEYS = Path(__file__).parents[1] / "tests" / "data" / "real_config" / "dit_keys.json"
LATENT, AUDIO, TEXT = (2, 4, 4), 5, 32  # frames, height, width in latent cells; tokens
KEEP = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "int8": torch.int8}
NAMES = {"torch.bfloat16": ("BF16", 2), "torch.float32": ("F32", 4)}


def write_network(path: Path, dtype: str, layers: int) -> None:
    """The released network with holes: only embedders, heads and rotary bands have values."""
    header, end, filled = {}, 0, {}
    for key, spec in json.loads(KEYS.read_text(encoding="utf-8"))["keys"].items():
        layer = re.match(r"block\.layers\.(\d+)\.", key)
        if layer and int(layer[1]) >= layers:
            continue
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


@torch.inference_mode()
def rows(quick: bool = False, resident_blocks: int = 0, dtype: str = "bf16", keep: str = "bf16",
         source: str | None = None, steps: int = 2, guided: bool = False, folder: str | None = None) -> list[Row]:
    """Seconds of loading and of each step, and the peak of memory beside the estimate, which has no Python and PyTorch
    in it. guided: two passes in each step, which share every fetch.

    Raises InputError for what cannot be run.
    """
    if steps < 1:
        raise InputError(f"steps is {steps}, expected 1 or more.")
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"{folder}: is no folder. Name one in which the file can be made.")
    if not KEYS.is_file():
        raise InputError(f"{KEYS} is not there, which tells the file's keys. Run this in a clone of the repository.")
    torch.manual_seed(0)
    found: list[Row] = []
    loaded: list[MagiHumanDiT] = []

    def run() -> None:
        taken = seconds(lambda: loaded.append(load_dit(path, dtype=KEEP[keep], resident_blocks=resident_blocks,
                                                       stream_from=source)))
        found.append(Row("loading", taken, "s", f"a file of {path.stat().st_size / 1e9:.1f} GB with holes"))
        found.extend(steps_of(loaded[0], steps, guided))

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "network.safetensors"
        write_network(path, dtype, 8 if quick else 40)
        most = peak_resident(run)
    expected = estimate(loaded[0].config, width=16 * LATENT[2], height=16 * LATENT[1], tokens=AUDIO, text_tokens=TEXT,
                        device="cpu", dtype=KEEP[keep], resident_blocks=resident_blocks, guided=guided)
    found.append(Row("peak of memory", None if most is None else most / 1e9, "GB",
                     f"estimated {expected.total / 1e9:.2f} GB"))
    return found


def steps_of(dit: MagiHumanDiT, steps: int, guided: bool) -> Iterator[Row]:
    c = dit.config
    clip = (torch.randn(1, c.video_channels, *LATENT), torch.randn(1, c.audio_channels, AUDIO),
            torch.randn(1, TEXT, c.text_channels))
    streamer = streamer_of(dit.blocks)
    try:
        for step in range(steps):
            outs: list[tuple[Tensor, Tensor]] = []
            taken = seconds(lambda outs=outs: outs.extend(dit.forward_many([clip] * (1 + guided))))
            assert all(bool(out.isfinite().all()) and bool(out.any()) for pair in outs for out in pair)
            note = "" if streamer is None else f"{streamer.nbytes / 1e9 / taken:.2f} GB/s of weights"
            yield Row(f"step {step + 1}, {c.layers} blocks", taken, "s", note)
    finally:
        if streamer is not None:
            streamer.close()


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--resident", dest="resident_blocks", type=int, default=0, help="blocks that stay in memory")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="of the file")
    parser.add_argument("--keep", choices=KEEP, default="bf16", help="how weights are kept once they are read")
    parser.add_argument("--from", dest="source", choices=("file", "memory"), help="where streamed blocks come from")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--guided", action="store_true", help="two passes in each step, which share every fetch")
    parser.add_argument("--folder", default=None, help="where the file is made")
    raise SystemExit(main(rows, parser))
