"""Draw the pictures of the guides: what each task makes of the same people, with the demo weights.

    python -m training.draw_guides                           # all of them, into docs/guides
    python -m training.draw_guides dub retake --seed 3
    python -m training.draw_guides readme                    # the people who speak in README, into docs

Rows of frames, evenly spaced in time, and below them curves: the mouth's opening as it is seen, the loudness of the
sound. People and voices are drawn from a seed that no training saw, as in evaluate_edits.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from magihuman_core.recipes import DEMO_LARGE
from magihuman_core.sizes import FPS
from training import measure
from training.captions import make_caption
from training.clips import make_clip
from training.evaluate_edits import MOUTH, PAGE, PART, Studio, frames_of, picture, prompt_of, sound, spoken
from training.options import add_options, command, set_up
from training.voice import SAMPLE_RATE

FRAMES = 10  # in a row
WIDTH = 9.0  # inches, at DPI
DPI = 100


def row(title, video):
    """A row of frames: (title, picture)."""
    chosen = np.linspace(0, len(video) - 1, FRAMES).round().astype(int)
    return title, np.concatenate(list(np.asarray(video)[chosen]), axis=1)


def curves(seconds, lines, marks=(), shade=None):
    """Curves over time: lines, {label: values by frame}; marks: times of dotted lines; shade: (start, end)."""
    return seconds, {name: values / max(1e-6, float(np.max(values))) for name, values in lines.items()}, marks, shade


def mouth_and_sound(video, waveform, **options):
    """The curves of a clip whose sound [2, n] has the rate of the drawn ones."""
    lines = {"mouth": measure.mouth_opening(video), "sound": measure.loudness(waveform, len(video))}
    return curves(len(video) / FPS, lines, **options)


def draw(path, parts):
    """One JPEG of rows and curves, from top to bottom."""
    heights = [part[1].shape[0] / part[1].shape[1] if len(part) == 2 else 0.10 for part in parts]
    figure = Figure(figsize=(WIDTH, WIDTH * sum(heights) + 0.28 * len(parts)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, part in zip(np.ravel(figure.subplots(len(parts), height_ratios=heights)), parts, strict=True):
        if len(part) == 2:
            axes.imshow(part[1])
            axes.set_title(part[0], fontsize=8, loc="left", pad=2)
            axes.axis("off")
            continue
        seconds, lines, marks, shade = part
        for name, values in lines.items():
            axes.plot((np.arange(len(values)) + 0.5) / FPS, values, label=name, linewidth=1)
        for mark in marks:
            axes.axvline(mark, color="black", linestyle=":", linewidth=1)
        if shade:
            axes.axvspan(*shade, alpha=0.15)
        axes.set(xlim=(0, seconds), yticks=[])
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7, loc="upper right", ncols=len(lines))
    figure.savefig(path, pil_kwargs={"quality": 82})


def long_speech(studio, seed):
    clip = studio.clip(seed, 20)
    video = frames_of(studio.drive(clip))
    return [row("20 seconds from one picture and one recording", video), mouth_and_sound(video, clip.audio)]


def dub(studio, seed):
    clip, other = studio.clip(seed, 2), studio.clip(seed + 1, 2)
    source = studio.drive(clip)
    made = studio.pipeline.dub(source, sound(other), mask=MOUTH, prompt=prompt_of(clip, other), seed=seed)
    return [row("before", frames_of(source)), row("dubbed", frames_of(made)),
            mouth_and_sound(frames_of(made), other.audio)]  # fmt: skip


def retake(studio, seed):
    source = studio.drive(studio.clip(seed, 2))
    made = studio.pipeline.retake(source, 0.8, 1.4, prompt=prompt_of(studio.clip(seed, 2)), seed=seed + 1)
    videos = [frames_of(clip)[15:40] for clip in (source, made)]
    mouths = {name: measure.mouth_opening(frames_of(clip)) for name, clip in (("before", source), ("after", made))}
    return [row("before, 0.6 to 1.6 s", videos[0]), row("0.8 to 1.4 s again", videos[1]),
            curves(len(source.frames) / FPS, {f"mouth {name}": mouths[name] for name in mouths}, shade=(0.8, 1.4))]


def keyframes(studio, seed):
    clip = studio.clip(seed, 2)
    made = studio.drive(clip, keyframes={"last": picture(clip, -1)})
    looped = studio.drive(clip, loop=True)
    return [row("the first and the last frame given", frames_of(made)), row("a loop", frames_of(looped)),
            row("the loop's end, and its start again", np.concatenate([frames_of(looped)[-5:], frames_of(looped)[:5]]))]


def extend(studio, seed):
    clip = studio.clip(seed, 6)
    made = studio.pipeline.generate(prompt_of(clip), image=picture(clip), audio=spoken(clip, 0), seed=seed)
    joins = []
    for _ in range(2):
        joins.append(len(made.frames) / FPS)
        made = studio.pipeline.extend(made, audio=spoken(clip, len(made.frames)), prompt=prompt_of(clip), seed=seed)
    video = frames_of(made)
    return [row(f"{PART / FPS:g} seconds, and twice as much again", video),
            mouth_and_sound(video, clip.audio, marks=joins)]  # fmt: skip


def live(studio, seed):
    clip = studio.clip(seed, 8)
    chunks = torch.from_numpy(clip.audio).split(SAMPLE_RATE // 5, dim=1)
    pieces = [frames for frames, _ in studio.pipeline.stream(chunks, rate=SAMPLE_RATE, prompt=prompt_of(clip),
                                                             image=picture(clip), seed=seed)]  # fmt: skip
    video = torch.cat(pieces).numpy()
    ends = np.cumsum([len(piece) for piece in pieces])[:-1] / FPS
    return [row("made while the voice speaks, a piece after the other", video),
            mouth_and_sound(video, clip.audio, marks=ends)]  # fmt: skip


def variation(studio, seed):
    clip = studio.clip(seed, 2)
    takes = list(studio.pipeline.generate_seeds(prompt_of(clip), [seed, seed + 1], seconds=2))
    hair = "red" if clip.attributes["hair"] != "red" else "black"
    other = make_caption({**clip.attributes, "hair": hair}, clip.syllables)
    rows = [row(f"seed {seed + place}", frames_of(take)) for place, take in enumerate(takes)]
    for denoise in (0.1, 0.2, 0.3):
        made = studio.pipeline.generate(other, clip=takes[0], denoise=denoise, seed=seed)
        rows.append(row(f"{hair} hair, denoise {denoise}", frames_of(made)))
    return rows


def voice_draft(studio, seed):
    prompt, lines = prompt_of(studio.clip(seed, 2)), {}
    for number in range(seed, seed + 3):
        waveform, rate = studio.pipeline.generate_audio(prompt, seed=number, seconds=2)
        frames = waveform.shape[1] * FPS // rate
        parts = waveform[:, : frames * (rate // FPS)].reshape(2, frames, -1)
        lines[f"seed {number}"] = parts.square().mean((0, 2)).sqrt().numpy()
    return [curves(2, {name: line}) for name, line in lines.items()]


GUIDES = {"long-speech": long_speech, "dub": dub, "retake": retake, "keyframes": keyframes, "extend": extend,
          "live": live, "variation": variation, "voice-draft": voice_draft}  # fmt: skip


README = {  # three people; what is not said of them is random
    "woman": {"hair": "red", "hairstyle": "curly", "glasses": "glasses", "wall": "mint", "shirt": "blue"},
    "man": {"hair": "black", "hairstyle": "short", "skin": "brown", "wall": "teal", "shirt": "yellow"},
    "child": {"hair": "blond", "hairstyle": "long", "glasses": "none", "wall": "pink", "shirt": "green"},
}


def readme_clips(studio, seed, folder):
    """A moving picture of each of them, after super-resolution, with every other frame."""
    for person, attributes in README.items():
        clip = make_clip(seed, attributes={"person": person, **attributes}, with_video=False)
        made = studio.pipeline.generate(clip.caption, seconds=2, seed=seed, upscale=(DEMO_LARGE, DEMO_LARGE))
        first, *others = (Image.fromarray(frame) for frame in frames_of(made)[::2])
        first.save(folder / f"demo_{person}.webp", save_all=True, append_images=others, duration=2000 // FPS, loop=0,
                   quality=70, method=6)  # fmt: skip


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("guides", nargs="*", metavar="GUIDE", help=f"of {', '.join(GUIDES)}; default: all; or readme")
    parser.add_argument("--out", type=Path, default=PAGE.parent)
    add_options(parser, run=False)
    options = parser.parse_args()
    if unknown := set(options.guides) - {*GUIDES, "readme"}:
        parser.error(f"{', '.join(unknown)}: expected some of {', '.join(GUIDES)}")
    set_up(options)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        studio = Studio((), Path(folder))
        for name in options.guides or GUIDES:
            if name == "readme":
                readme_clips(studio, options.seed, PAGE.parent.parent)
                continue
            draw(options.out / f"{name}.jpg", GUIDES[name](studio, options.seed))
            print(options.out / f"{name}.jpg", flush=True)


if __name__ == "__main__":
    main()
