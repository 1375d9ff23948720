"""Drawn people: a cartoon head and shoulders with a large mouth that speaks.

`Scene` holds what a clip shows (attributes and small individual differences), `draw` paints it for given
mouth movements. All random choices are made in `make_scene`, none depends on the size of the picture.
"""

from dataclasses import dataclass

import numpy as np

from training.canvas import Canvas, View
from training.painter import Painter, paint_wall, shirt_layer
from training.palette import CHOICES
from training.voice import FRAME_RATE, SHAPES, speech_curves

# Half width of the mouth and rows of teeth shown, in units (see canvas.View), tongue 0..1; last row: at rest.
MOUTH_SHAPES = {
    "a": (0.125, 0.030, 1.0),
    "e": (0.140, 0.030, 0.8),
    "i": (0.165, 0.034, 0.4),
    "o": (0.088, 0.000, 0.3),
    "u": (0.056, 0.000, 0.0),
    "m": (0.092, 0.000, 0.0),
    "s": (0.130, 0.060, 0.0),
    "rest": (0.108, 0.000, 0.0),
}
HEAD_CENTRE = (0.5, 0.455)
CHUNK_PIXELS = 150_000  # frames are drawn in groups that stay in the processor's cache


@dataclass(frozen=True)
class Scene:
    """What a clip shows. attributes: name -> value of CHOICES; the rest are differences nobody asks for."""

    attributes: dict
    sway: tuple  # per axis (x, y, roll): amplitude, frequency in Hz, phase
    blinks: tuple  # times in seconds
    side: float  # parting of the hair, -1 or 1
    width: float  # of the head, about 1
    disc: tuple  # centre x, y and radius of the light disc on the wall
    hat: bool = False  # which no prompt of the demo knows: something for a LoRA to learn


def make_scene(rng, seconds, attributes=None, hat=False):
    """Draw all random choices of a scene; `attributes` fixes some of them (names and values of CHOICES)."""
    chosen = {name: str(rng.choice(values)) for name, values in CHOICES.items()}
    chosen["glasses"] = "glasses" if rng.random() < 0.35 else "none"
    for name, value in (attributes or {}).items():
        if name in CHOICES:
            if value not in CHOICES[name]:
                raise ValueError(f"attribute {name}={value!r}: expected one of {', '.join(CHOICES[name])}")
            chosen[name] = value
    sway = tuple(
        (amplitude * rng.uniform(0.5, 1.0), rng.uniform(0.25, 0.6), rng.uniform(0.0, 2.0 * np.pi))
        for amplitude in (0.010, 0.006, 0.035)
    )
    count = max(1, int(seconds * rng.uniform(0.5, 1.1)))
    blinks = tuple(rng.uniform(0.15, max(0.15, seconds - 0.15), count))
    return Scene(
        attributes=chosen,
        sway=sway,
        blinks=blinks,
        side=float(rng.choice([-1.0, 1.0])),
        width=float(rng.uniform(0.97, 1.03)),
        disc=(float(rng.uniform(0.40, 0.60)), float(rng.uniform(0.40, 0.50)), float(rng.uniform(0.38, 0.46))),
        hat=hat,
    )


def mouth_curves(syllables, frames, mood="calm"):
    """Mouth per frame: opening [F] (0..1, the truth), half width, teeth, tongue, bend (corners up) [F]."""
    t = (np.arange(frames) + 0.5) / FRAME_RATE
    curves = speech_curves(syllables, t)
    table = np.array([MOUTH_SHAPES[s] for s in SHAPES])
    rest = np.array(MOUTH_SHAPES["rest"])
    values = rest + curves["shape"] @ (table - rest)
    bend = {"happy": 0.050, "calm": 0.010, "sad": -0.042}[mood]
    busy = 1.0 - 0.6 * np.clip(curves["opening"] / 0.5, 0.0, 1.0)
    return curves["opening"], values[:, 0], values[:, 1], values[:, 2], bend * busy


def draw(scene, syllables, frames, height=128, width=128):
    """Paint a scene: uint8 [F, height, width, 3] RGB. Frame f shows the moment (f + 0.5) / 25 s."""
    t = (np.arange(frames) + 0.5) / FRAME_RATE
    mouth = np.stack(mouth_curves(syllables, frames, scene.attributes["mood"])).astype(np.float32)
    sway = [a * np.sin(2.0 * np.pi * f * t + p) for a, f, p in scene.sway]
    sway[1] = sway[1] + 0.004 * mouth[0]  # a small nod on loud vowels
    blink = np.zeros(frames)
    for moment in scene.blinks:
        blink = np.maximum(blink, np.clip(1.6 - np.abs(t - moment) / 0.10, 0.0, 1.0))
    view = View(height, width)
    wall, shirt = paint_wall(scene, view), shirt_layer(scene, view)
    step = max(1, CHUNK_PIXELS // (height * width))
    parts = []
    for first in range(0, frames, step):
        now = slice(first, min(frames, first + step))
        canvas = Canvas(view, wall, HEAD_CENTRE[0] + sway[0][now], HEAD_CENTRE[1] + sway[1][now], sway[2][now])
        painter = Painter(scene, canvas, mouth[:, now, None, None], blink[now, None, None])
        painter.paint(shirt)
        parts.append(canvas.images())
    return np.concatenate(parts)
