"""Measure what the guides promise, on the demo weights: long speech, dubbing, retakes, keyframes, extending, live.

    python -m training.evaluate_edits --clips 4                       # all rows, seeds 0 to 3; the table is printed
    python -m training.evaluate_edits --rows dub retake --clips 8
    python -m training.evaluate_edits --clips 4 --write               # into docs/guides/measured.md, row by row

Everything goes through the pipeline as a user's clip does, from drawn clips of seeds that no training saw; a row with
"control" is made wrongly on purpose. Sync, attributes and dB are those of measure.py.
"""

import argparse
import datetime
import math
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from magihuman_core import MagiHumanPipeline
from magihuman_core.atomic import whole_file
from magihuman_core.media.mask import ellipse_mask
from magihuman_core.media.mp4 import write_mp4
from magihuman_core.media.video_file import open_video
from magihuman_core.media.waveform import OUTPUT_RATE, resample_recording
from magihuman_core.sizes import FPS
from training import measure
from training.captions import make_caption
from training.clips import make_clip
from training.common import Stop
from training.demo import Demo
from training.evaluate import check_seeds
from training.files import DEMO
from training.options import add_options, command, set_up, whole
from training.rows import mean, step_sizes
from training.voice import SAMPLE_RATE

PART = 50  # frames of two seconds
MOUTH = (0.5, 0.6875, 0.56, 0.40)  # an ellipse around a drawn mouth and its jaw
PAGE = Path(__file__).resolve().parent.parent / "docs" / "guides" / "measured.md"


class Studio:
    """A pipeline, and the drawn material that is brought to it."""

    def __init__(self, seeds, folder):
        """folder: for films in between. The weights are those in magihuman_core/demo: a pipeline makes clips of the
        demo's size with no others.
        """
        self.pipeline, self.seeds = MagiHumanPipeline.from_folder("demo", device="cpu"), seeds
        self.folder = folder

    def drawn(self, seconds):
        return [self.clip(seed, seconds) for seed in self.seeds]

    def clip(self, seed, seconds):
        return make_clip(seed, seconds=seconds)

    def drive(self, clip, **options):
        """A clip driven by the sound of a drawn one, from its first picture. The prompt holds the words of 2 s."""
        return self.pipeline.generate(prompt_of(clip), image=picture(clip), audio=sound(clip), seed=clip.seed,
                                      **options)


def prompt_of(clip, words_of=None):
    spoken = [syllable for syllable in (words_of or clip).syllables if syllable[2] <= 2.0]
    return make_caption(clip.attributes, spoken or (words_of or clip).syllables[:3])


def picture(clip, frame=0):
    return Image.fromarray(clip.video[frame])


def sound(clip):
    """As long as the picture."""
    return torch.from_numpy(clip.audio[:, : len(clip.video) * measure.SAMPLES_PER_TOKEN]), SAMPLE_RATE


def frames_of(made):
    return made.frames.numpy()


def sync(film, clip, first=0, last=None, shift=0):
    """Of the mouth in frames that were made for a drawn clip's sound. first, last, shift: in frames."""
    start = (first + shift) * measure.SAMPLES_PER_TOKEN
    return measure.sync(film[first:last], clip.audio[:, start:])


def parts_of(clip, count):
    """The two-second parts of a clip in which something is heard: (first, last frame)."""
    parts = [(first, first + PART) for first in range(0, count - PART + 1, PART)]
    level = measure.loudness(clip.audio, count)
    return [part for part in parts if level[slice(*part)].max() > 0.02]


def rank(steps, places):
    """The share of all steps that are smaller than the largest at these places, in percent."""
    return 100.0 * float((steps < max(steps[place] for place in places)).mean())


def speech(studio, seconds, **options):
    return follows(studio.drawn(seconds), lambda clip: frames_of(studio.drive(clip, **options)))


def follows(clips, film_of):
    """How well films follow the sound of drawn clips, in whole and in every part. film_of(clip) -> [F, H, W, 3]."""
    syncs, worst, seen, drift, moved = [], [], [], [], []
    for clip in clips:
        film = film_of(clip)
        parts = parts_of(clip, len(film))
        syncs.append(sync(film, clip))
        moved.append(sync(film, clip, shift=4))
        worst.append(min(sync(film, clip, *part) for part in parts))
        seen.append(min(measure.attribute_accuracy(measure.read_attributes(film[slice(*part)]), clip.attributes)
                        for part in parts))  # fmt: skip
        colors = np.stack([film[slice(*part)].mean(axis=(0, 1, 2)) for part in parts])
        drift.append(float(np.abs(colors - colors[0]).max()))
    return {"sync": mean(syncs), "worst clip": min(syncs), "worst 2 s": min(worst), "attributes, worst 2 s": min(seen),
            "color drift of 255": max(drift), "control: sound moved by 0.16 s": mean(moved)}  # fmt: skip


def codec(studio, seconds):
    """The drawn films themselves, encoded and decoded: no network can be expected to be better."""
    demo = Demo(DEMO)

    def film_of(clip):
        latent = demo.encode(clip)
        return demo.decode(latent.video, latent.audio)[0]

    return follows(studio.drawn(seconds), film_of)


def one_shot(studio):
    return speech(studio, 20, window=20)


def dub(studio):
    clips = studio.drawn(2)
    new, old, outside, before = [], [], [], []
    for clip, other in zip(clips, clips[1:] + clips[:1], strict=True):
        source = studio.drive(clip)
        made = studio.pipeline.dub(source, sound(other), mask=MOUTH, prompt=prompt_of(clip, other), seed=clip.seed)
        new.append(sync(frames_of(made), other))
        old.append(sync(frames_of(made), clip))
        before.append(sync(frames_of(source), other))
        change = np.abs(frames_of(made).astype(np.float32) - frames_of(source)).mean(axis=(0, 3))
        outside.append(float(change[ellipse_mask(MOUTH, *change.shape[::-1]).numpy() < 0.5].mean()))
    return {"sync with the new sound": mean(new), "with the old": mean(old), "change outside of 255": max(outside),
            "control: old clip, new sound": mean(before)}  # fmt: skip


def retake(studio):
    syncs, before, ranks, outside = [], [], [], []
    for clip in studio.drawn(2):
        source = studio.drive(clip)
        made = studio.pipeline.retake(source, 0.8, 1.3, video_only=True, prompt=prompt_of(clip), seed=clip.seed + 1)
        syncs.append(sync(frames_of(made), clip))
        before.append(sync(frames_of(source), clip))
        changed = np.flatnonzero((frames_of(made) != frames_of(source)).any(axis=(1, 2, 3)))
        ranks.append(rank(step_sizes(frames_of(made)), (changed[0] - 1, changed[-1])))
        outside.append(float((made.latents[0] != source.latents[0]).flatten(3).any(3).any(1).float().mean()))
    return {"sync": mean(syncs), "before": mean(before), "steps at the joins, percentile": mean(ranks),
            "share of latent frames changed": mean(outside)}  # fmt: skip


def last_frame(studio):
    wanted, without, first, syncs = [], [], [], []
    for clip in studio.drawn(2):
        end = clip.video[-1:]
        made, plain = studio.drive(clip, keyframes={"last": picture(clip, -1)}), studio.drive(clip)
        wanted.append(measure.psnr(frames_of(made)[-1:], end))
        without.append(measure.psnr(frames_of(plain)[-1:], end))
        first.append(measure.psnr(frames_of(made)[:1], clip.video[:1]))
        syncs.append(sync(frames_of(made), clip))
    return {"last frame dB": mean(wanted), "control: not given, dB": mean(without), "first frame dB": mean(first),
            "sync": mean(syncs)}  # fmt: skip


def loop(studio):
    back, usual = [], []
    for clip in studio.drawn(2):
        video = frames_of(studio.drive(clip, loop=True))
        back.append(float(step_sizes(np.stack([video[-1], video[0]]))[0]))
        usual.append(float(step_sizes(video).mean()))
    return {"step from end to start": mean(back), "usual step": mean(usual)}


def extend(studio, rate=None):
    """Two seconds are driven, and three times two more follow. rate: the first is brought as a film of this rate."""
    syncs, ranks, offsets = [], [], []
    for clip in studio.drawn(8):
        made = studio.pipeline.generate(prompt_of(clip), image=picture(clip), audio=spoken(clip, 0), seed=clip.seed)
        start, joins = len(made.frames), []
        if rate is not None:
            made = as_film(studio, made, rate)
            start = open_video(made).count
        for _ in range(3):
            heard = start if not joins else len(made.frames)
            new = spoken(clip, heard)
            made = studio.pipeline.extend(made, audio=new, prompt=prompt_of(clip), seed=clip.seed)
            joins.append(heard - 1)
            offsets.append(late(made.audio[:, heard * (OUTPUT_RATE // FPS) :], new))
        syncs.append(sync(frames_of(made), clip, start))
        ranks.append(rank(step_sizes(frames_of(made)), joins))
    return {"sync of the new parts": mean(syncs), "steps at the joins, percentile": mean(ranks),
            "new sound against its first frame, ms": max(offsets)}  # fmt: skip


def spoken(clip, first):
    """Two seconds of a clip's sound, from a frame on."""
    start = first * measure.SAMPLES_PER_TOKEN
    return torch.from_numpy(clip.audio[:, start : start + PART * measure.SAMPLES_PER_TOKEN]), SAMPLE_RATE


def as_film(studio, made, rate):
    """A file of another rate, each of whose frames is the one of its time."""
    path = studio.folder / f"film_{rate.numerator}.mp4"
    count = math.ceil(len(made.frames) / FPS * rate)
    chosen = (torch.arange(count) / float(rate) * FPS).long()
    write_mp4(path, made.frames[chosen], made.audio, fps=rate, sample_rate=OUTPUT_RATE)
    return path


def late(heard, given):
    """How far a sound [2, n] at 44.1 kHz lies from where the given one begins, in ms, by correlation; 0 for silence."""
    wanted = resample_recording(*given, OUTPUT_RATE).mean(0).numpy()
    if np.abs(wanted).max() < 0.01:
        return 0.0
    size = 2 * len(wanted)
    spectrum = np.fft.rfft(heard.mean(0).numpy()[: len(wanted)], size)
    lag = int(np.fft.irfft(spectrum * np.fft.rfft(wanted, size).conj(), size).argmax())
    return 1000 * min(lag, size - lag) / OUTPUT_RATE


def live(studio):
    syncs = []
    for clip in studio.drawn(12):
        chunks = torch.from_numpy(clip.audio).split(SAMPLE_RATE // 5, dim=1)
        pieces = list(studio.pipeline.stream(chunks, rate=SAMPLE_RATE, prompt=prompt_of(clip), image=picture(clip),
                                             seed=clip.seed))  # fmt: skip
        video = torch.cat([frames for frames, _ in pieces]).numpy()
        syncs.append(measure.sync(video, clip.audio))
    return {"sync": mean(syncs), "worst clip": min(syncs)}


ROWS = {
    "codec": ("limit: 20 s of a drawn film, encoded and decoded", lambda studio: codec(studio, 20)),
    "codec 60": ("limit: 60 s of a drawn film, encoded and decoded", lambda studio: codec(studio, 60)),
    "20 s": ("20 s of driven speech", lambda studio: speech(studio, 20)),
    "60 s": ("60 s of driven speech", lambda studio: speech(studio, 60)),
    "no anchor": ("control: 60 s, the picture seen by the first window only",
                  lambda studio: speech(studio, 60, anchor=False)),
    "one shot": ("control: 20 s in one window", one_shot),
    "dub": ("dub, the mouth made anew", dub),
    "retake": ("retake of 0.8 to 1.3 s, picture", retake),
    "last frame": ("a last frame given", last_frame),
    "loop": ("loop", loop),
    "extend": ("extended three times, latents carried", extend),
    "extend 24": ("extended three times, from a film of 24 fps", lambda studio: extend(studio, Fraction(24))),
    "extend 29.97": ("the same of 29.97 fps", lambda studio: extend(studio, Fraction(30000, 1001))),
    "extend 30": ("the same of 30 fps", lambda studio: extend(studio, Fraction(30))),
    "live": ("12 s live", live),
}


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=whole(2), default=4, help="two or more: a dub takes the sound of another clip")
    parser.add_argument("--first-seed", type=whole(0), default=0)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}, each row as it is there")
    add_options(parser, run=False, seed=False)
    options = parser.parse_args()
    set_up(options)
    check_seeds(options)
    seeds = range(options.first_seed, options.first_seed + options.clips)
    lost = [label for label, _ in ROWS.values() if f"\n| {label} |" not in PAGE.read_text("utf-8")]
    if options.write and lost:
        raise Stop(f"{PAGE} has no row for {', '.join(lost)}: add it first.")
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(seeds, Path(folder))
        for name in options.rows:
            label, make = ROWS[name]
            started = time.monotonic()
            with torch.inference_mode():
                numbers = make(studio)
            text = ", ".join(f"{key} {value:.3g}" for key, value in numbers.items())
            print(f"{label} ({time.monotonic() - started:.0f} s): {text}", flush=True)
            if options.write:
                write_row(label, text, seeds)


def write_row(label, text, seeds):
    """Put one row into the page of figures, in place of the one that was there."""
    row = f"| {label} | {text} | {seeds[0]} to {seeds[-1]} | {datetime.date.today().isoformat()} |"
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    kept = {line.split(" | ")[0]: number for number, line in enumerate(lines)}
    lines[kept[f"| {label}"]] = row
    with whole_file(PAGE) as file:
        file.write(("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
