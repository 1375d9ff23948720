"""Clips on disk: drawn once, kept as plain arrays that are mapped into memory.

    python -m training.data --count 1600                     # draws; may be stopped and started again
    python -m training.data --large --count 60               # a few at twice the size, for the video autoencoders

Clips of one shape and length are a set, a folder with their name: <run>/clips/portrait_4s. It holds video.npy uint8
[N, F, H, W, 3], audio.npy float16 [N, n] (both channels are alike), and meta.jsonl with seed, caption, attributes,
syllables and mouth opening of every clip drawn so far.
"""

import argparse
from dataclasses import dataclass

import numpy as np

from magihuman_core.sizes import audio_length
from training.clips import frames_in, make_clip
from training.common import TRAIN_SEEDS, Progress, RowWriter, Stop, add_options, read_rows
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

    @property
    def size(self):
        """(height, width) in pixels."""
        shape = self.name.split("_")[0]
        if shape not in SHAPES:
            raise Stop(f"{self.name} is no set of clips: expected a shape out of {', '.join(SHAPES)} and a length, "
                       "such as portrait_4s.")  # fmt: skip
        height, width = SHAPES[shape]
        return self.factor * height, self.factor * width

    @property
    def seconds(self):
        return float(self.name.split("_")[1].removesuffix("s"))


def open_array(path, dtype=None, shape=None):
    """Map an .npy file; made when it does not exist and a shape is given. Raises Stop where shapes differ."""
    if not path.exists():
        if shape is None:
            raise Stop(f"{path} does not exist: the stage that makes it comes first (see training/run_demo.sh).")
        path.parent.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape)
    array = np.load(path, mmap_mode="r+" if shape else "r")
    if shape and array.shape != shape:
        raise Stop(f"{path} was made for shape {array.shape}, not {shape}: give the same --count, "
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=1600, help="of all sets together")
    parser.add_argument("--large", action="store_true", help="at twice the size, into <run>/large")
    parser.add_argument("--sets", nargs="+", metavar="SHAPE_SECONDS", help="equal shares of these sets instead of all")
    add_options(parser)
    options = parser.parse_args()
    shares = LARGE_SHARES if options.large else SHARES
    if options.sets:
        shares = {name: 1 / len(options.sets) for name in options.sets}
    folder = options.run / ("large" if options.large else "clips")
    for place, (name, share) in enumerate(shares.items()):
        first = (LARGE_SEEDS if options.large else TRAIN_SEEDS) + place * SEEDS_OF_SET
        count = max(2, round(options.count * share))
        draw_clips(folder / name, count, ClipSet(name, 2 if options.large else 1), first)


if __name__ == "__main__":
    main()
