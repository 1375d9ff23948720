"""Clips on disk: drawn once, kept as plain arrays that are mapped into memory.

    python -m training.data clips --count 4000 --parts 2     # draws; may be stopped and started again

A folder holds video.npy uint8 [N, F, S, S, 3], audio.npy float16 [N, n] (both channels are alike), and
meta.jsonl with caption, attributes, syllables and mouth opening of every clip drawn so far.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from training.clips import FRAMES, audio_tokens, make_clip
from training.common import RUNS, TRAIN_SEEDS
from training.voice import SAMPLES_PER_TOKEN


def open_array(path, dtype=None, shape=None):
    """Map an .npy file; made when it does not exist and a shape is given."""
    path = Path(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape)
    return np.load(path, mmap_mode="r+" if shape else "r")


class Clips:
    """Reading view of a folder of clips; `len` grows while another process draws."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.video = open_array(self.folder / "video.npy")
        self.audio = open_array(self.folder / "audio.npy")
        self.meta = []
        self.refresh()

    def refresh(self):
        lines = (self.folder / "meta.jsonl").read_text().split("\n")[:-1]
        self.meta = [json.loads(line) for line in lines]
        return len(self.meta)

    def __len__(self):
        return len(self.meta)


def draw_clips(folder, count, size, frames=FRAMES, first_seed=TRAIN_SEEDS, with_video=True):
    """Draw clips first_seed, first_seed + 1, ... into a folder; goes on where an earlier run stopped."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    samples = audio_tokens(frames) * SAMPLES_PER_TOKEN
    video = open_array(folder / "video.npy", np.uint8, (count, frames, size, size, 3))
    audio = open_array(folder / "audio.npy", np.float16, (count, samples))
    meta_path = folder / "meta.jsonl"
    done = len(meta_path.read_text().split("\n")) - 1 if meta_path.exists() else 0
    with meta_path.open("a") as meta:
        for index in range(done, count):
            clip = make_clip(first_seed + index, size, frames)
            video[index], audio[index] = clip.video, clip.audio[0]
            line = {"seed": clip.seed, "caption": clip.caption, "attributes": clip.attributes,
                    "syllables": clip.syllables, "opening": [round(float(v), 4) for v in clip.mouth_opening]}
            meta.write(json.dumps(line) + "\n")
            meta.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", help="folder below training/runs")
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--first-seed", type=int, default=TRAIN_SEEDS)
    options = parser.parse_args()
    draw_clips(RUNS / options.name, options.count, options.size, first_seed=options.first_seed)
