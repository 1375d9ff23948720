"""How a person is painted, layer by layer from the wall to the glasses."""

import numpy as np

from training.canvas import ellipse, line, round_ellipse, smooth_edge
from training.palette import HAIR_COLOURS, SHIRT_COLOURS, SKIN_TONES, WALL_COLOURS

MOUTH_HEIGHT = 0.20  # of a fully open mouth, in units (see canvas.View)
MOUTH_PLACE = 0.165  # below the head's centre
HAT_COLOUR, HAT_BAND = (92, 40, 148), (248, 206, 70)
EYE_PLACE = (0.118, -0.062)  # beside and above it
SHADOW = (0.86, 0.80, 0.80)  # factors on the skin's colour below the chin


def paint_wall(scene, view):
    """The wall with a lighter disc behind the head: [3, H, W]."""
    x, y = view.x, view.y
    colour = np.array(WALL_COLOURS[scene.attributes["wall"]], np.float32)[:, None, None]
    cx, cy, radius = scene.disc
    disc = smooth_edge(round_ellipse(x - cx, y - cy, radius, radius), view.unit)
    shade = 1.0 - 0.05 * y  # a trace of light from above
    return (colour + 0.32 * disc * (255.0 - colour)) * shade


def shirt_layer(scene, view):
    """Coverage [H, W] and colours [3, H, W] of the shirt; it keeps still."""
    x, y, unit = view.x, np.minimum(view.y, 1.16), view.unit  # straight down from where the shoulders are widest
    colour = np.array(SHIRT_COLOURS[scene.attributes["shirt"]], np.float32)[:, None, None]
    shoulders = round_ellipse(x - 0.5, y - 1.16, 0.46, 0.36)
    neckline = round_ellipse(x - 0.5, y - 0.80, 0.115, 0.075)
    inside = smooth_edge(shoulders, unit)
    skin = np.array(SKIN_TONES[scene.attributes["skin"]], np.float32) * np.array(SHADOW, np.float32)
    bare = smooth_edge(neckline, unit)
    collar = line(neckline + 0.016, 0.022, unit)
    shade = 1.0 - 0.16 * collar
    return inside, colour * shade * (1.0 - bare) + skin[:, None, None] * bare


class Painter:
    """Paints one group of frames. mouth: [5, F, 1, 1] (see mouth_curves); blink: [F, 1, 1] in 0..1."""

    def __init__(self, scene, canvas, mouth, blink):
        self.scene, self.canvas = scene, canvas
        self.opening, self.half_width, self.teeth, self.tongue, self.bend = mouth
        self.blink = blink.astype(np.float32)
        a = scene.attributes
        self.person, self.style, self.mood = a["person"], a["hairstyle"], a["mood"]
        self.hair = np.array(HAIR_COLOURS[a["hair"]], np.float32)
        self.skin = np.array(SKIN_TONES[a["skin"]], np.float32)
        self.shadow = self.skin * np.array(SHADOW, np.float32)
        self.head = (0.275 * scene.width, 0.325 if self.person == "child" else 0.34)

    def paint(self, shirt):
        self.back_hair()
        self.neck()
        coverage, colours = shirt
        rows = slice(int(self.canvas.view.top + 0.7 * self.canvas.unit), None)
        self.canvas.paint(coverage[rows], colours[:, rows], (rows, slice(None)))
        self.face()
        self.eyes()
        self.mouth()
        self.front_hair()
        if self.scene.attributes["glasses"] == "glasses":
            self.glasses()
        if self.scene.hat:
            self.hat()

    def spot(self, left, top, right, bottom):
        """Open a box of head coordinates: pixel box, x, y."""
        box = self.canvas.box(left, top, right, bottom)
        return box, *self.canvas.head_coordinates(box)

    def fill(self, distance, colour, box, strength=1.0):
        alpha = smooth_edge(distance, self.canvas.unit)
        if strength != 1.0:
            alpha *= strength
        self.canvas.paint(alpha, colour, box)

    def stroke(self, distance, width, colour, box, mask=None, strength=1.0):
        alpha = line(distance, width, self.canvas.unit)
        if mask is not None:
            alpha *= mask
        if strength != 1.0:
            alpha *= strength
        self.canvas.paint(alpha, colour, box)

    def back_hair(self):
        if self.style == "long":
            box, x, y = self.spot(-0.36, -0.40, 0.36, 0.56)
            inside = round_ellipse(x, y - 0.06, 0.345 * self.scene.width, 0.47)
            self.fill(inside, self.hair * 0.86, box)
            waves = np.abs(x) / 0.05
            strands = line((waves - np.floor(waves) - 0.5) * 0.05, 0.004, self.canvas.unit)
            strands *= smooth_edge(inside - 0.012, self.canvas.unit) * 0.18
            self.canvas.paint(strands, self.hair * 0.55, box)
        elif self.style == "bun":
            box, x, y = self.spot(-0.12, -0.46, 0.12, -0.25)
            ball = ellipse(x, y + 0.355, 0.105, 0.095)
            self.fill(ball, self.hair * 0.9, box)
            for ring in (0.03, 0.06):
                self.stroke(ball - ring, 0.005, self.hair * 0.6, box, strength=0.35)
        elif self.style == "curly":
            for k in range(11):
                angle = np.pi * (0.86 + 1.28 * k / 10)
                cx, cy = 0.30 * np.cos(angle), -0.06 + 0.30 * np.sin(angle)
                box, x, y = self.spot(cx - 0.11, cy - 0.11, cx + 0.11, cy + 0.11)
                curl = round_ellipse(x - cx, y - cy, 0.105, 0.105)
                self.fill(curl, self.hair * (0.86 + 0.06 * (k % 2)), box)
                self.stroke(curl - 0.035, 0.005, self.hair * 0.6, box, strength=0.3)

    def neck(self):
        box, x, y = self.spot(-0.13, 0.24, 0.13, 0.45)
        half = {"child": 0.080, "woman": 0.088, "man": 0.115}[self.person]
        self.fill(np.minimum(half - np.abs(x), 0.44 - y), self.shadow, box)

    def face(self):
        rx, ry = self.head
        for side in (-1.0, 1.0):
            cx = side * (rx + 0.005)
            box, x, y = self.spot(cx - 0.05, -0.04, cx + 0.05, 0.10)
            ear = ellipse(x - cx, y - 0.03, 0.042, 0.058)
            self.fill(ear, self.skin, box)
            if self.person == "woman":
                self.fill(ellipse(x - cx, y - 0.092, 0.016, 0.016), (250, 214, 92), box)
        box, x, y = self.spot(-rx, -ry, rx, ry + 0.02)
        jaw = 1.0 / (1.0 + 0.09 * self.opening)  # the chin drops with the mouth
        y = np.where(y > 0.0, y * jaw, y)
        self.fill(round_ellipse(x, y, rx, ry), self.skin, box)
        blush = np.clip(self.skin * np.array((1.04, 0.80, 0.76), np.float32), 0, 255)
        for side in (-1.0, 1.0):
            box, x, y = self.spot(side * 0.19 - 0.07, 0.03, side * 0.19 + 0.07, 0.14)
            cheek = np.clip(3.0 * (ellipse(x - side * 0.19, y - 0.085, 0.06, 0.045) / 0.045), 0.0, 1.0)
            self.canvas.paint(cheek * (0.75 if self.person == "child" else 0.45), blush, box)
        box, x, y = self.spot(-0.05, -0.02, 0.05, 0.06)
        curve = y - 0.035 + 7.0 * x * x
        nostrils = smooth_edge(0.034 - np.abs(x), self.canvas.unit)
        self.stroke(curve, 0.012, self.shadow * 0.9, box, mask=nostrils)

    def eyes(self):
        """Dark ovals with a glint, which a blink flattens to a line: what 128 pixels can hold."""
        rx, ry = {"child": (0.040, 0.053), "woman": (0.036, 0.047), "man": (0.032, 0.042)}[self.person]
        closed = np.clip(self.blink, 0.0, 1.0)
        width, height = rx * (1.0 + 0.35 * closed), ry + (0.011 - ry) * closed
        brow_height, brow_tilt, brow_arch = {
            "happy": (-0.012, 0.04, 3.2),
            "calm": (0.0, 0.02, 1.8),
            "sad": (-0.004, 0.34, 0.0),
        }[self.mood]
        brow_width = {"child": 0.016, "woman": 0.018, "man": 0.030}[self.person]
        unit = self.canvas.unit
        for side in (-1.0, 1.0):
            ex, ey = side * EYE_PLACE[0], EYE_PLACE[1]
            box, x, y = self.spot(ex - 0.06, ey - 0.06, ex + 0.06, ey + 0.06)
            x, y = x - ex, y - ey
            self.fill(ellipse(x, y, width, height), (36, 24, 30), box)
            glint = smooth_edge(ellipse(x + 0.011, y + 0.4 * height, 0.013, 0.013), unit)
            self.canvas.paint(glint * np.clip(1.0 - 1.5 * closed, 0.0, 1.0), (255, 255, 255), box)
            top = ey - 0.100 + brow_height
            box, x, y = self.spot(ex - 0.075, top - 0.05, ex + 0.075, top + 0.05)
            x, y = (x - ex) * side, y - top + 0.010 * self.opening  # brows rise with loud vowels
            curve = y - brow_tilt * x - brow_arch * (x * x)
            brow_colour = self.hair * 0.62 if self.scene.attributes["hair"] != "black" else self.hair
            self.stroke(curve, brow_width, brow_colour, box, mask=smooth_edge(0.062 - np.abs(x), unit))

    def mouth(self):
        unit = self.canvas.unit
        box, x, y = self.spot(-0.20, MOUTH_PLACE - 0.11, 0.20, MOUTH_PLACE + 0.19)
        half = np.maximum(0.5 * MOUTH_HEIGHT * self.opening, 0.004)
        across = x / self.half_width
        # Up to the corners the mouth bends with the mood; the jaw drop moves the middle down.
        y = y - MOUTH_PLACE + self.bend * (across * across) - 0.5 * self.bend
        y = y - 0.45 * half
        lips_colour = np.array((196, 44, 66) if self.person == "woman" else (178, 74, 76), np.float32)
        if self.scene.attributes["skin"] in ("brown", "dark"):
            lips_colour = lips_colour * np.array((0.92, 0.70, 0.80), np.float32)
        lip = 0.030 if self.person == "woman" else 0.026
        self.fill(ellipse(x, y, self.half_width + lip, half + lip), lips_colour, box)
        inner = ellipse(x, y, self.half_width, half)
        inside = smooth_edge(inner, unit)
        self.canvas.paint(inside, (58, 10, 24), box)
        tongue = smooth_edge(ellipse(x, y - 0.85 * half, 0.72 * self.half_width, 0.62 * half + 1e-3), unit)
        self.canvas.paint(tongue * inside * self.tongue, (232, 96, 110), box)
        shown = np.minimum(self.teeth, 1.3 * half)
        rows = smooth_edge(np.minimum(shown - (y + half), inner - 0.004), unit)
        rows *= np.clip((shown - 0.008) / 0.012, 0.0, 1.0)
        self.canvas.paint(rows, (252, 250, 244), box)

    def front_hair(self):
        rx, ry = self.head
        box, x, y = self.spot(-rx - 0.04, -ry - 0.06, rx + 0.04, 0.10)
        cap = round_ellipse(x, y + 0.035, rx + 0.012, ry + 0.005)
        s = self.scene.side * x
        if self.style == "short":
            edge = -0.215 + 0.15 * s + 1.9 * x * x
        elif self.style == "long":
            edge = -0.235 + 2.6 * x * x
        elif self.style == "bun":
            edge = -0.262 + 2.4 * x * x
        else:
            edge = -0.225 + 1.8 * x * x + 0.010 * np.cos(60.0 * x)
        hair = smooth_edge(np.minimum(cap, edge - y), self.canvas.unit)
        self.canvas.paint(hair, self.hair, box)
        # Strands follow the skull: lines of equal distance from its edge; one band of light.
        ring = cap / 0.026
        strands = line((ring - np.floor(ring) - 0.5) * 0.026, 0.004, self.canvas.unit)
        strands *= hair
        self.canvas.paint(strands * 0.2, self.hair * 0.55, box)
        light = line(cap - 0.055, 0.020, self.canvas.unit) * hair
        light *= np.clip(1.0 - np.abs(s + 0.06) / 0.10, 0.0, 1.0)
        self.canvas.paint(light * 0.45, self.hair + 0.6 * (255.0 - self.hair), box)

    def glasses(self):
        frame = (28, 30, 40)
        for side in (-1.0, 1.0):
            ex, ey = side * EYE_PLACE[0], EYE_PLACE[1]
            box, x, y = self.spot(ex - 0.10, ey - 0.10, ex + 0.10, ey + 0.10)
            self.stroke(ellipse(x - ex, y - ey, 0.076, 0.070), 0.020, frame, box)
        box, x, y = self.spot(-0.06, -0.10, 0.06, -0.04)
        bridge = smooth_edge(0.045 - np.abs(x), self.canvas.unit)
        self.stroke(y + 0.070 - 3.0 * x * x, 0.018, frame, box, mask=bridge)

    def hat(self):
        box, x, y = self.spot(-0.22, -0.46, 0.22, -0.22)
        self.fill(np.minimum(0.19 - np.abs(x) - 0.15 * (y + 0.23), np.minimum(y + 0.43, -0.22 - y)), HAT_COLOUR, box)
        self.fill(np.minimum(0.19 - np.abs(x), 0.022 - np.abs(y + 0.262)), HAT_BAND, box)
        box, x, y = self.spot(-0.36, -0.27, 0.36, -0.18)
        self.fill(ellipse(x, y + 0.225, 0.35, 0.034), HAT_COLOUR, box)
