"""A decoded frame of a video as it is to be seen."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import av
    from PIL import Image


def upright(frame: av.VideoFrame, aspect: Fraction) -> Image.Image:
    """A frame of any pixel format as RGB, stretched to square pixels, and turned.

    aspect: of its pixels, width to height; see pixel_aspect.
    """
    image = frame.to_image(width=seen_width(frame.width, aspect), interpolation="BICUBIC")
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Width to height of a stream's pixels, which are not square in DV, on DVD and in HDV; 1 where it is not said."""
    return stream.sample_aspect_ratio or Fraction(1)


def seen_width(width: int, aspect: Fraction) -> int:
    """Square pixels in a row of so many pixels."""
    return max(1, round(width * aspect))
