"""Antialiased drawing of many frames at once: shapes are signed distances, edges one pixel soft.

Coordinates are in units of a square that holds the figure (`View`), so a scene drawn at twice the size is the
same scene, sharper. A moving part of the scene (the head) has its own frame of coordinates per picture, turned and
shifted by any sub-pixel amount, so slow movement shows in the soft edges instead of jumping.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class View:
    """Where a picture of height x width pixels shows the square that holds the figure.

    A square picture is that square. A portrait cuts a little at both sides, with more wall above and more shirt
    below; a landscape cuts a little below, with more wall at both sides.
    """

    height: int
    width: int

    @cached_property
    def unit(self):
        """Side of the square in pixels."""
        return min(max(self.height, self.width), self.width * 9 / 8, self.height * 13 / 12)

    @cached_property
    def left(self):
        """Column of its left edge; below 0 where it is cut."""
        return (self.width - self.unit) / 2

    @cached_property
    def top(self):
        """Row of its upper edge."""
        return 0.6 * max(0.0, self.height - self.unit)

    @cached_property
    def x(self):
        """Coordinates of the columns, [1, width]."""
        return ((np.arange(self.width) + 0.5 - self.left) / self.unit).astype(np.float32)[None, :]

    @cached_property
    def y(self):
        """Coordinates of the rows, [height, 1]."""
        return ((np.arange(self.height) + 0.5 - self.top) / self.unit).astype(np.float32)[:, None]

    def box(self, left, top, right, bottom):
        """Pixel slices (rows, columns) of a box, cut at the picture's edges; a pixel at least where it is inside."""
        rows = np.round(np.array([top, bottom]) * self.unit + self.top).astype(int)
        columns = np.round(np.array([left, right]) * self.unit + self.left).astype(int)
        (a, b), (c, d) = rows.clip(0, self.height), columns.clip(0, self.width)
        return slice(a, max(b, a + 1)), slice(c, max(d, c + 1))


def smooth_edge(distance, unit):
    """Coverage 0..1 of a shape whose signed distance (positive inside) is given in units of so many pixels."""
    coverage = distance * unit
    coverage += 0.5
    return np.clip(coverage, 0.0, 1.0, out=coverage)


def line(distance, width, unit):
    """Coverage of a line of `width` along distance = 0. Lines below a pixel grow faint, not thick."""
    outer = smooth_edge(distance + width / 2, unit)
    outer -= smooth_edge(distance - width / 2, unit)
    return outer


def ellipse(x, y, rx, ry):
    """First-order signed distance to an axis-parallel ellipse at the origin. rx, ry may be per frame."""
    sx, sy = x / rx, y / ry
    q = sx * sx + sy * sy
    slope = np.sqrt((sx / rx) ** 2 + (sy / ry) ** 2) * 2.0
    slope += 1e-6
    return (1.0 - q) / slope


def round_ellipse(x, y, rx, ry):
    """The same for large, nearly round ellipses, several times cheaper: slope taken as constant."""
    q = np.square(x * (1.0 / rx)) + np.square(y * (1.0 / ry))
    q -= 1.0
    q *= -0.5 * np.sqrt(rx * ry)
    return q


class Canvas:
    """Frames [3, F, H, W] float32 with values 0..255, and the head's coordinates in each.

    background: [3, H, W] as `view` has it; centre_x, centre_y [F] and roll [F] (radians) place the head.
    """

    margin = 0.035  # how far the head may wander from its mean place, with antialiasing

    def __init__(self, view, background, centre_x, centre_y, roll):
        self.view, self.unit = view, view.unit
        self.frames = len(centre_x)
        self.planes = np.repeat(background[:, None], self.frames, axis=1)
        self.place = [np.asarray(p, np.float32)[:, None, None] for p in (centre_x, centre_y, roll)]
        self.mean = float(np.mean(centre_x)), float(np.mean(centre_y))

    def box(self, left, top, right, bottom):
        """Pixel slices (rows, columns) that hold a box of head coordinates in all frames."""
        mx, my = self.mean
        m = self.margin
        return self.view.box(mx + left - m, my + top - m, mx + right + m, my + bottom + m)

    def head_coordinates(self, box):
        """x, y [F, h, w] in the head's own frame, y down."""
        cx, cy, roll = self.place
        dx = self.view.x[None, :, box[1]] - cx
        dy = self.view.y[None, box[0]] - cy
        cos, sin = np.cos(roll), np.sin(roll)
        return cos * dx + sin * dy, cos * dy - sin * dx

    def paint(self, alpha, colour, box=(slice(None), slice(None))):
        """Blend a colour (three numbers 0..255, or three arrays) with coverage alpha [F, h, w] or [h, w]."""
        for plane, value in zip(self.planes, colour, strict=True):
            region = plane[:, box[0], box[1]]
            delta = value - region
            delta *= alpha
            region += delta

    def images(self):
        """uint8 [F, H, W, 3]."""
        out = np.empty((*self.planes.shape[1:], 3), np.uint8)
        for c, plane in enumerate(self.planes):
            np.clip(plane, 0.0, 255.0, out=plane)
            plane += 0.5
            out[..., c] = plane
        return out
