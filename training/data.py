"""Clips on disk: drawn once, kept as plain arrays that are mapped into memory.

    python -m training.data --count 1600                     # draws; may be stopped and started again
    python -m training.data --large --count 60               # a few at twice the size, for the video autoencoders

Clips of one shape and length are a set, a folder with their name: <run>/clips/portrait_4s. It holds video.npy uint8
[N, F, H, W, 3], audio.npy float16 [N, n] (both channels are alike), and meta.jsonl with seed, caption, attributes,
syllables and mouth opening of every clip drawn so far.
"""

import argparse
import math
import os
import re
from dataclasses import dataclass

import numpy as np

from magihuman_core.sizes import audio_length
from training.clips import frames_in, make_clip
from training.common import TRAIN_SEEDS, Progress, RowWriter, Stop, alone, read_rows
from training.options import add_options, command, whole
from training.voice import SAMPLES_PER_TOKEN

SHAPES = {"square": (128, 128), "portrait": (160, 96), "landscape": (96, 160)}  # height, width
SHARES = {  # of all clips
    "square_2s": 0.24, "square_3s": 0.08, "square_4s": 0.12, "square_5s": 0.08, "square_6s": 0.14,
    "portrait_2s": 0.09, "portrait_4s": 0.04, "portrait_6s": 0.04,
    "landscape_2s": 0.09, "landscape_4s": 0.04, "landscape_6s": 0.04,
}  # fmt: skip
LARGE_SHARES = {"square_2s": 0.6, "portrait_2s": 0.2, "landscape_2s": 0.2}
LARGE_SEEDS = TRAIN_SEEDS + 200_000  # first seed of the large clips
SEEDS_OF_SET = 10_000  # between the first seeds of two sets


@dataclass(frozen=True)
class ClipSet:
    """Shape and length of some clips. name: as in SHARES, a shape of SHAPES and whole seconds."""

    name: str
    factor: int = 1  # on height and width

    def __post_init__(self):
        """Raises Stop where the name says no shape and length."""
        if not re.fullmatch(f"({'|'.join(SHAPES)})_[1-9][0-9]{{0,2}}s", self.name):
            raise Stop(f"{self.name} is no set of clips: expected a shape out of {', '.join(SHAPES)} and whole "
                       "seconds, such as portrait_4s.")  # fmt: skip

    @property
    def size(self):
        """(height, width) in pixels."""
        height, width = SHAPES[self.name.split("_")[0]]
        return self.factor * height, self.factor * width

    @property
    def seconds(self):
        return float(self.name.split("_")[1].removesuffix("s"))


def open_array(path, dtype=None, shape=None):
    """Map an .npy file; made when it does not exist and a shape is given.

    Raises Stop where shapes differ, the file is damaged, or the disk has no room for a new one.
    """
    if not path.exists():
        if shape is None:
            raise Stop(f"{path} does not exist: the stage that makes it comes first (see training/run_demo.sh).")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            array = np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape)
            reserve(path)
        except OSError as error:
            path.unlink(missing_ok=True)
            size = math.prod(shape) * np.dtype(dtype).itemsize / 1e9
            raise Stop(f"{path} needs {size:.1f} GB, which cannot be had ({error.strerror or error}): free some space, "
                       "or ask for fewer clips.") from error  # fmt: skip
        return array
    if shape:
        reserve(path)  # one that was made and no more, before a process ended
    try:
        array = np.load(path, mmap_mode="r+" if shape else "r")
    except (ValueError, EOFError) as error:
        raise Stop(f"{path} is damaged ({error}): delete its folder and make it again.") from error
    if shape and array.shape != shape:
        raise Stop(f"{path} was made for shape {array.shape}, not {shape}: give the same --count, "
                   "or delete its folder.")  # fmt: skip
    return array


def reserve(path):
    """Take the space on disk that a file says to have: a map of a file with holes dies where the disk is full."""
    found = path.stat()
    if hasattr(os, "posix_fallocate") and found.st_blocks * 512 < found.st_size:  # not on Windows and Macs
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, found.st_size)


def split(indices, held_out, takes=2):
    """The part of some clips that is trained on, or the last few, which are measured while training goes on.

    takes: so many in a row are of one scene, and stay together. Raises Stop where one part would be empty.
    """
    count = len(indices)
    limit = (count - min(16, max(1, count // 25))) // takes * takes
    if limit < 1:
        raise Stop(f"{count} clips are too few: {takes + 1} are the least, one of them held out.")
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
                       f"python -m training.data --run {folder.parents[1]} and its --count.")  # fmt: skip

    def __len__(self):
        return len(self.meta)

    def other_take(self, index):
        """The clip of the same scene with other words; the last of an odd number has none but itself."""
        return min(index ^ 1, len(self) - 1)

    @property
    def description(self):
        """What a run records of its clips."""
        size = "x".join(map(str, self.video.shape[1:4]))
        return f"{len(self)} of {size} from seed {self.meta[0]['seed']}, two takes of each scene"


def sets_in(folder):
    """The folders of all sets of clips in a folder, sorted. Raises Stop where there is none."""
    found = sorted(path.parent for path in folder.glob("*/video.npy"))
    if not found:
        raise Stop(f"{folder} holds no clips: the stage that makes them comes first (see training/run_demo.sh).")
    return found


def choice_by_size(random, parts):
    """One of several lists, each as likely as it is long."""
    sizes = np.array([len(part) for part in parts], float)
    return parts[int(random.choice(len(parts), p=sizes / sizes.sum()))]


def counts_of(count, shares):
    """{ClipSet's name: how many of `count` clips are of this set}. shares: of each, or names for equal shares.

    Raises Stop where a set would have too few to be trained on, or more than there are seeds between two sets.
    """
    if not isinstance(shares, dict):
        shares = {name: 1 / len(set(shares)) for name in shares}
    for name in shares:
        ClipSet(name)
    counts = {name: round(count * share) for name, share in shares.items()}
    least = 3
    if min(counts.values()) < least:
        raise Stop(f"--count {count} is too few for {len(shares)} sets, each of which needs {least} clips: give "
                   f"{math.ceil(least / min(shares.values()))} or more, or fewer --sets.")  # fmt: skip
    if max(counts.values()) > SEEDS_OF_SET:
        raise Stop(f"--count {count} is too many: a set can have {SEEDS_OF_SET} clips.")
    return counts


def draw_clips(folder, count, clip_set, first_seed=TRAIN_SEEDS):
    """Draw clips first_seed, first_seed + 1, ... into a folder; goes on where an earlier run stopped.

    Two and two are takes of one scene, who say other words: for dubbing (masks.dubbed).
    """
    (height, width), seconds = clip_set.size, clip_set.seconds
    video = open_array(folder / "video.npy", np.uint8, (count, frames_in(seconds), height, width, 3))
    audio = open_array(folder / "audio.npy", np.float16, (count, audio_length(seconds) * SAMPLES_PER_TOKEN))
    rows = read_rows(folder / "meta.jsonl")
    if rows and rows[0]["seed"] != first_seed:
        raise Stop(f"{folder} begins with seed {rows[0]['seed']}, not {first_seed}: give the same, or delete it.")
    progress = Progress(f"clips drawn into {folder}", len(rows), count)
    with RowWriter(folder / "meta.jsonl") as meta:
        for index in range(len(rows), count):
            clip = make_clip(first_seed + index, height, width, seconds, scene_seed=first_seed + index - index % 2)
            video[index], audio[index] = clip.video, clip.audio[0]
            meta.write({"seed": clip.seed, "caption": clip.caption, "attributes": clip.attributes,
                        "syllables": clip.syllables, "opening": [round(float(v), 4) for v in clip.mouth_opening]})
            progress.step()


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=whole(1), default=1600, help="of all sets together")
    parser.add_argument("--large", action="store_true", help="at twice the size, into <run>/large")
    parser.add_argument("--sets", nargs="+", metavar="SHAPE_SECONDS", help="equal shares of these sets instead of all")
    add_options(parser, threads=False, seed=False)
    options = parser.parse_args()
    counts = counts_of(options.count, options.sets or (LARGE_SHARES if options.large else SHARES))
    folder = options.run / ("large" if options.large else "clips")
    for place, (name, count) in enumerate(counts.items()):
        first = (LARGE_SEEDS if options.large else TRAIN_SEEDS) + place * SEEDS_OF_SET
        with alone(folder / name):
            draw_clips(folder / name, count, ClipSet(name, 2 if options.large else 1), first)


if __name__ == "__main__":
    main()
