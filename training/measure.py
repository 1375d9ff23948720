"""Measuring functions of the evaluation: what is in a clip, found from its pixels and samples alone.

Videos are [F, H, W, 3], uint8 or float in 0..255; sounds [2, n] at 51.2 kHz. Nothing here knows the
drawing's truth but the palette and the places where a head and shoulders of this world have their parts.
"""

import numpy as np

from training import palette
from training.canvas import View
from training.listen import (
    edit_distance,
    read_person,
    read_pitch,
    read_syllables,
    read_timed_syllables,
    syllable_error_rate,
)
from training.painter import HAT_COLOUR, MOUTH_HEIGHT
from training.voice import SAMPLES_PER_TOKEN

__all__ = [
    "attribute_accuracy",
    "edit_distance",
    "hat_share",
    "loudness",
    "mouth_opening",
    "psnr",
    "read_attributes",
    "read_person",
    "read_pitch",
    "read_syllables",
    "read_timed_syllables",
    "sharpness",
    "shifted_sync",
    "syllable_error_rate",
    "sync",
    "variety",
]

LIPS = 0.056  # height of closed lips in units of the figure's square


def _region(video, left, top, right, bottom):
    """Part of the pictures, limits in units of the figure's square: [F, h, w, 3] float32."""
    video = np.asarray(video)
    rows, columns = View(*video.shape[1:3]).box(left, top, right, bottom)
    return video[:, rows, columns].astype(np.float32)


def _median_colour(*regions):
    return np.median(np.concatenate([r.reshape(-1, 3) for r in regions]), axis=0)


def _nearest(colour, palette):
    return min(palette, key=lambda name: float(np.square(colour - np.array(palette[name])).sum()))


def _skin_colour(video):
    return _median_colour(_region(video, 0.40, 0.48, 0.60, 0.535))


def _mouth_weights(video):
    """How unlike skin each pixel around the mouth is, 0..1: [F, h, w], and the unit in pixels."""
    window = _region(video, 0.32, 0.53, 0.68, 0.78)
    distance = np.sqrt(np.square(window - _skin_colour(video)).sum(axis=-1))
    return np.clip((distance - 20.0) / 40.0, 0.0, 1.0), View(*np.asarray(video).shape[1:3]).unit


def mouth_opening(video):
    """Opening of the mouth per frame, about 0..1: the height of lips and mouth in the middle columns. [F]"""
    weights, unit = _mouth_weights(video)
    middle = weights.shape[2] // 2
    half = max(1, round(0.03 * unit))
    height = weights[:, :, middle - half : middle + half].sum(axis=1).mean(axis=1) / unit
    return np.clip((height - LIPS) / MOUTH_HEIGHT, 0.0, None)


def loudness(audio, frames):
    """RMS of the sound over each of the first `frames` video frames (2048 samples each): [frames]."""
    audio = np.atleast_2d(np.asarray(audio, dtype=np.float32))
    wanted = frames * SAMPLES_PER_TOKEN
    audio = np.pad(audio[:, :wanted], ((0, 0), (0, max(0, wanted - audio.shape[1]))))
    return np.sqrt(np.square(audio.reshape(audio.shape[0], frames, -1)).mean(axis=(0, 2)))


def _correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 1e-8 else 0.0


def sync(video, audio):
    """Correlation over frames between mouth opening in the picture and loudness of the sound, -1..1."""
    opening = mouth_opening(video)
    return _correlation(opening, loudness(audio, len(opening)))


def shifted_sync(video, audio):
    """The control of `sync`: mean correlation with the sound turned round by a quarter to three quarters."""
    opening = mouth_opening(video)
    level = loudness(audio, len(opening))
    shifts = range(len(opening) // 4, 3 * len(opening) // 4 + 1)
    return float(np.mean([_correlation(opening, np.roll(level, shift)) for shift in shifts]))


def read_attributes(video):
    """Read the picture's attributes: a dictionary with hair, hairstyle, skin, shirt, wall, glasses, mood.

    The person is heard, not seen (`read_person`).
    """
    # From the picture's edge inwards: a landscape has much wall at both sides, a portrait little.
    wall = _median_colour(_region(video, -9.0, 0.0, 0.08, 0.10), _region(video, 0.92, 0.0, 9.0, 0.10))
    hair = _nearest(_median_colour(_region(video, 0.43, 0.14, 0.57, 0.20)), palette.HAIR_COLOURS)
    wall = _nearest(wall, palette.WALL_COLOURS)
    return {
        "hair": hair,
        "hairstyle": _read_hairstyle(video, palette.HAIR_COLOURS[hair], palette.WALL_COLOURS[wall]),
        "skin": _nearest(_skin_colour(video), palette.SKIN_TONES),
        "shirt": _nearest(_median_colour(_region(video, 0.2, 0.89, 0.8, 1.0)), palette.SHIRT_COLOURS),
        "wall": wall,
        "glasses": _read_glasses(video),
        "mood": _read_mood(video),
    }


def _read_hairstyle(video, hair, wall):
    """Where around the head there is hair instead of wall: at the temples, beside the neck, on top."""
    hair, wall = np.array(hair, np.float32) * 0.88, np.array(wall, np.float32)
    lit = wall + 0.32 * (255.0 - wall)

    def share(*limits):
        pixels = np.concatenate([_region(video, *box).reshape(-1, 3) for box in limits])
        to_hair = np.square(pixels - hair).sum(axis=-1)
        to_wall = np.minimum(np.square(pixels - wall).sum(axis=-1), np.square(pixels - lit).sum(axis=-1))
        return float((to_hair < to_wall).mean())

    if share((0.12, 0.33, 0.14, 0.44), (0.86, 0.33, 0.88, 0.44)) > 0.5:
        return "curly"
    if share((0.20, 0.66, 0.24, 0.74), (0.76, 0.66, 0.80, 0.74)) > 0.5:
        return "long"
    return "bun" if share((0.46, 0.045, 0.54, 0.085)) > 0.5 else "short"


def _read_glasses(video):
    """Dark rims between the eyes, or skin."""
    bridge = _region(video, 0.465, 0.355, 0.535, 0.425)
    rim = np.array((28, 30, 40), np.float32)
    dark = np.square(bridge - rim).sum(-1) < np.square(bridge - _skin_colour(video)).sum(-1)
    return "glasses" if dark.mean() > 0.10 else "none"


def _read_mood(video):
    """Corners of the closed mouth against its middle: up is happy, down is sad."""
    opening = mouth_opening(video)
    weights, unit = _mouth_weights(video)
    weights = weights[:, : round(0.175 * unit)]  # above the chin, whose edge is round as well
    closed = weights[opening <= np.quantile(opening, 0.35)].mean(axis=0)  # [h, w]
    mass = closed.sum(axis=0) + 1e-6
    height = (closed * np.arange(closed.shape[0])[:, None]).sum(axis=0) / mass / unit
    x = (np.arange(closed.shape[1]) - (closed.shape[1] - 1) / 2) / unit / 0.108
    near = np.abs(x) < 1.0
    bend = -np.polyfit(x[near], height[near], 2, w=np.sqrt(mass[near]))[0]
    return "happy" if bend > 0.026 else "sad" if bend < -0.012 else "calm"


def hat_share(video):
    """How much of the place of a hat's crown is hat, 0..1."""
    crown = _region(video, 0.38, 0.06, 0.62, 0.16)
    return float((np.square(crown - np.array(HAT_COLOUR, np.float32)).sum(-1) < 60**2).mean())


def attribute_accuracy(read, asked):
    """Share of the asked-for attributes that were read, over the keys both have. One pair, or two lists."""
    if isinstance(asked, dict):
        read, asked = [read], [asked]
    hits = [r[name] == a[name] for r, a in zip(read, asked, strict=True) for name in r if name in a]
    return float(np.mean(hits)) if hits else 0.0


def psnr(a, b):
    """Peak signal-to-noise ratio in dB of two videos with values 0..255."""
    error = np.square(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean()
    return float(10.0 * np.log10(255.0**2 / max(float(error), 1e-10)))


def sharpness(video):
    """Gradient score: RMS step between neighbouring pixels' brightness. Higher is sharper, size matters."""
    grey = np.asarray(video, np.float32) @ np.array((0.299, 0.587, 0.114), np.float32)
    across, down = np.diff(grey, axis=2), np.diff(grey, axis=1)
    return float(np.sqrt(0.5 * (np.square(across).mean() + np.square(down).mean())))


def variety(videos):
    """How much clips of one prompt differ: mean over pairs of the RMS difference of pictures (0..255), and
    one minus the mean correlation of mouth movements. Returns {"picture": ..., "movement": ...}."""
    mouths = [mouth_opening(v) for v in videos]
    small = [np.asarray(v, np.float32)[::4, ::2, ::2] for v in videos]
    pairs = [(i, j) for i in range(len(videos)) for j in range(i)]
    if not pairs:
        return {"picture": 0.0, "movement": 0.0}
    image = np.mean([np.sqrt(np.square(small[i] - small[j]).mean()) for i, j in pairs])
    movement = 1.0 - np.mean([_correlation(mouths[i], mouths[j]) for i, j in pairs])
    return {"picture": float(image), "movement": float(movement)}
