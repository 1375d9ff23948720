"""Antialiased drawing of many frames at once: shapes are signed distances, edges one pixel soft.

Coordinates are in parts of the picture's width, so a scene drawn at twice the size is the same scene,
sharper. A moving part of the scene (the head) has its own frame of coordinates per picture, turned and
shifted by any sub-pixel amount, so slow movement shows in the soft edges instead of jumping.
"""

import numpy as np


def smooth_edge(distance, size):
    """Coverage 0..1 of a shape whose signed distance (positive inside) is given in picture widths."""
    coverage = distance * size
    coverage += 0.5
    return np.clip(coverage, 0.0, 1.0, out=coverage)


def line(distance, width, size):
    """Coverage of a line of `width` along distance = 0. Lines below a pixel grow faint, not thick."""
    outer = smooth_edge(distance + width / 2, size)
    outer -= smooth_edge(distance - width / 2, size)
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
    """Frames [3, F, S, S] float32 with values 0..255, and the head's coordinates in each.

    background: [3, S, S] or [3, 1, S, S]; centre_x, centre_y [F] and roll [F] (radians) place the head.
    """

    margin = 0.035  # how far the head may wander from its mean place, with antialiasing

    def __init__(self, background, centre_x, centre_y, roll):
        self.size = background.shape[-1]
        self.frames = len(centre_x)
        self.planes = np.repeat(background.reshape(3, 1, self.size, self.size), self.frames, axis=1)
        self.axis = ((np.arange(self.size) + 0.5) / self.size).astype(np.float32)
        self.place = [np.asarray(p, np.float32)[:, None, None] for p in (centre_x, centre_y, roll)]
        self.mean = float(np.mean(centre_x)), float(np.mean(centre_y))

    def box(self, left, top, right, bottom):
        """Pixel slices (rows, columns) that hold a box of head coordinates in all frames."""
        mx, my = self.mean
        m = self.margin
        edges = np.array([my + top - m, my + bottom + m, mx + left - m, mx + right + m]) * self.size
        a, b, c, d = np.clip(np.round(edges), 0, self.size).astype(int)
        return slice(a, b), slice(c, d)

    def head_coordinates(self, box):
        """x, y [F, h, w] in the head's own frame, y down."""
        cx, cy, roll = self.place
        dx = self.axis[box[1]][None, None, :] - cx
        dy = self.axis[box[0]][None, :, None] - cy
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
        """uint8 [F, S, S, 3]."""
        out = np.empty((self.frames, self.size, self.size, 3), np.uint8)
        for c, plane in enumerate(self.planes):
            np.clip(plane, 0.0, 255.0, out=plane)
            plane += 0.5
            out[..., c] = plane
        return out
