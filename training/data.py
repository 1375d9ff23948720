"""Clips on disk: drawn once, kept as plain arrays that are mapped into memory.

    python -m training.data clips --count 1600               # draws; may be stopped and started again

A folder holds video.npy uint8 [N, F, S, S, 3], audio.npy float16 [N, n] (both channels are alike), and
meta.jsonl with seed, caption, attributes, syllables and mouth opening of every clip drawn so far.
"""

import argparse

import numpy as np

from training.clips import FRAMES, audio_tokens, make_clip
from training.common import TRAIN_SEEDS, Progress, RowWriter, Stop, add_options, read_rows
from training.voice import SAMPLES_PER_TOKEN


def open_array(path, dtype=None, shape=None):
    """Map an .npy file; made when it does not exist and a shape is given. Raises Stop where shapes differ."""
    if not path.exists():
        if shape is None:
            raise Stop(f"{path} does not exist: the stage that makes it comes first (see training/run_demo.sh).")
        path.parent.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape)
    array = np.load(path, mmap_mode="r+" if shape else "r")
    if shape and array.shape != shape:
        raise Stop(f"{path} was made for shape {array.shape}, not {shape}: give the same --count and --size, "
                   "or delete its folder.")  # fmt: skip
    return array


def held_out_from(count):
    """The first of the last few clips, which are not trained on but measured while training goes on."""
    return count - min(16, max(1, count // 25))


def split(indices, held_out):
    """The part of some clips that is trained on, or the rest. Raises Stop where one would be empty."""
    if len(indices) < 2:
        raise Stop(f"{len(indices)} clips are too few: two are the least, one of them held out.")
    limit = held_out_from(len(indices))
    return np.asarray(indices[limit:] if held_out else indices[:limit])


class Clips:
    """Reading view of a folder of clips."""

    def __init__(self, folder):
        self.folder = folder
        self.video = open_array(folder / "video.npy")
        self.audio = open_array(folder / "audio.npy")
        self.meta = read_rows(folder / "meta.jsonl")
        if len(self.meta) < len(self.video):
            raise Stop(f"{folder} holds {len(self.meta)} of {len(self.video)} clips: draw the others first, "
                       f"python -m training.data {folder.name} --run {folder.parent} and its --count.")  # fmt: skip

    def __len__(self):
        return len(self.meta)

    @property
    def description(self):
        """What a run records of its clips."""
        return f"{len(self)} of {'x'.join(map(str, self.video.shape[1:4]))} from seed {self.meta[0]['seed']}"


def draw_clips(folder, count, size, frames=FRAMES, first_seed=TRAIN_SEEDS):
    """Draw clips first_seed, first_seed + 1, ... into a folder; goes on where an earlier run stopped."""
    samples = audio_tokens(frames) * SAMPLES_PER_TOKEN
    video = open_array(folder / "video.npy", np.uint8, (count, frames, size, size, 3))
    audio = open_array(folder / "audio.npy", np.float16, (count, samples))
    rows = read_rows(folder / "meta.jsonl")
    if rows and rows[0]["seed"] != first_seed:
        raise Stop(f"{folder} begins with seed {rows[0]['seed']}, not {first_seed}: give the same, or delete it.")
    progress = Progress(f"clips drawn into {folder}", len(rows), count)
    with RowWriter(folder / "meta.jsonl") as meta:
        for index in range(len(rows), count):
            clip = make_clip(first_seed + index, size, frames)
            video[index], audio[index] = clip.video, clip.audio[0]
            meta.write({"seed": clip.seed, "caption": clip.caption, "attributes": clip.attributes,
                        "syllables": clip.syllables, "opening": [round(float(v), 4) for v in clip.mouth_opening]})
            progress.step()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", help="folder in the run's folder")
    parser.add_argument("--count", type=int, default=1600)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--first-seed", type=int, default=TRAIN_SEEDS)
    add_options(parser)
    options = parser.parse_args()
    draw_clips(options.run / options.name, options.count, options.size, first_seed=options.first_seed)
