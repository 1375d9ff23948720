"""What a LoRA that learnt a hat does at several strengths, and whether it leaves the rest as it was.

    python -m training.evaluate_lora training/runs/demo/lora_hat/hat.safetensors --clips 4
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from magihuman_core import apply_lora
from training import measure
from training.clips import make_clip
from training.demo import Demo
from training.files import DEMO
from training.journal import write_sheet
from training.options import add_options, command, number, set_up, whole

COVERED = ("hair", "hairstyle")  # attributes that a hat hides


@torch.inference_mode()
def row(demo, clips):
    """(numbers, videos) of these prompts as the network is now."""
    made = [demo.decode(*demo.generate(clip.caption, clip.seed)) for clip in clips]
    videos = [video for video, _ in made]
    wanted = [{key: value for key, value in clip.attributes.items() if key not in COVERED} for clip in clips]
    return {
        "hat": float(np.mean([measure.hat_share(video) for video in videos])),
        "other attributes": measure.attribute_accuracy([measure.read_attributes(v) for v in videos], wanted),
        "sync": float(np.mean([measure.sync(*pair) for pair in made])),
    }, videos


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("lora", type=Path)
    parser.add_argument("--folder", type=Path, default=DEMO, help="of the weights; default: the shipped ones")
    parser.add_argument("--clips", type=whole(1), default=4)
    parser.add_argument("--strengths", type=number, nargs="+", default=(0.0, 0.25, 0.5, 0.75, 1.0))
    add_options(parser, run=False, seed=False)
    options = parser.parse_args()
    set_up(options)
    demo, clips = Demo(options.folder), [make_clip(seed) for seed in range(options.clips)]
    sheet = []
    for strength in options.strengths:
        applied = apply_lora(demo.network("distilled"), options.lora, strength)
        numbers, videos = row(demo, clips)
        applied.remove()
        shown = ", ".join(f"{name} {value:.2f}" for name, value in numbers.items())
        print(f"strength {strength:g}: {shown}", flush=True)
        sheet.append(np.stack([video[len(video) // 2] for video in videos]))
    path = options.lora.with_name(f"{options.lora.stem}_strengths.png")
    write_sheet(path, sheet)
    print(f"contact sheet, a row for each strength: {path}")


if __name__ == "__main__":
    main()
