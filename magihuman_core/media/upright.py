"""A decoded frame of a video as it is to be seen."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import av
    from PIL import Image

RGB, BT709, UNSPECIFIED, BT601 = 0, 1, 2, 5  # matrices of ITU-T H.273
LIMITED, FULL = 1, 2  # FFmpeg's color ranges
HD = (1280, 576)  # pixels: so wide, or higher than this


def upright(frame: av.VideoFrame, aspect: Fraction) -> Image.Image:
    """A frame of any pixel format as RGB, stretched to square pixels, mirrored and turned as it says.

    Colors that are not tagged are taken by the size, as players do: BT.709 from HD on, else BT.601.
    aspect: of its pixels, width to height; see pixel_aspect.
    """
    from PIL import Image

    matrix = frame.colorspace
    if matrix == UNSPECIFIED:
        matrix = BT709 if frame.width >= HD[0] or frame.height > HD[1] else BT601
    full = frame.color_range == FULL or frame.format.name.startswith("yuvj")
    # All four are told: before version 17 PyAV takes BT.601 where the target's matrix is not another one.
    image = frame.to_image(width=seen_width(frame.width, aspect), interpolation="BICUBIC", src_colorspace=matrix,
                           src_color_range=FULL if full else LIMITED, dst_colorspace=RGB, dst_color_range=FULL)
    mirrored, angle = _turn(frame)
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.rotate(angle, expand=True) if angle else image


def _turn(frame: av.VideoFrame) -> tuple[bool, int]:
    """(Whether a frame is to be mirrored left to right, degrees by which it is to be turned left then).

    PyAV's `rotation` is wrong of mirrored ones. FFmpeg's display matrix has 3x3 numbers, of which the first of the
    first two rows say where a step to the right goes, and their second ones where a step down goes.
    """
    from av.sidedata.sidedata import Type

    side_data: Any = frame.side_data  # PyAV's types want a text for a key, which it does not take
    matrix = side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return False, 0
    right_x, right_y, _, down_x, down_y, *_ = np.frombuffer(matrix, np.int32).tolist()
    mirrored = right_x * down_y - right_y * down_x < 0
    if mirrored:
        right_x, right_y = -right_x, -right_y
    return mirrored, -round(math.degrees(math.atan2(right_y, right_x))) % 360


def pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Width to height of a stream's pixels, which are not square in DV, on DVD and in HDV; 1 where it is not said."""
    return stream.sample_aspect_ratio or Fraction(1)


def seen_width(width: int, aspect: Fraction) -> int:
    """Square pixels in a row of so many pixels."""
    return max(1, round(width * aspect))
