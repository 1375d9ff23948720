"""Sizes of a clip: from pixels and seconds to latent cells, audio tokens and frames, and back.

Picture and sound keep one clock: 25 frames and 25 audio latents each second. Four frames make one latent
frame, the first frame makes one by itself.
"""

import logging
import math

from .errors import InputError

FPS = 25  # frames, and audio latents, per second
PIXELS_PER_LATENT = 16  # pixels per latent cell, in height and width
PIXELS_PER_TOKEN = 32  # pixels per token: a token covers 2 x 2 latent cells
TEXT_TOKENS = 640  # text beyond this is cut

BASE_SIZE = (448, 256)  # width, height
UPSCALED_SIZES = {"540p": (896, 512), "1080p": (1920, 1088)}  # of the base size

log = logging.getLogger(__name__)


def snap_size(width: int, height: int) -> tuple[int, int]:
    """Floor a picture's width and height, in pixels, to multiples of 32; a change is logged as a warning.

    Raises InputError where either is not a whole number of at least 32.
    """
    for name, value in (("width", width), ("height", height)):
        if isinstance(value, bool) or not isinstance(value, int) or value < PIXELS_PER_TOKEN:
            raise InputError(f"{name} is {value!r}, expected a whole number of pixels, {PIXELS_PER_TOKEN} or more. "
                             f"The model's own size is {BASE_SIZE[0]}x{BASE_SIZE[1]}.")
    snapped = width // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN, height // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN
    if snapped != (width, height):
        log.warning("The size %dx%d is not in multiples of %d; %dx%d is made.", width, height, PIXELS_PER_TOKEN,
                    *snapped)
    return snapped


def upscaled_size(width: int, height: int, target: str | tuple[int, int]) -> tuple[int, int]:
    """The pixel size that super-resolution gives a base clip of width x height.

    target: "540p" or "1080p", the area of these at the clip's own aspect ratio (448x256 becomes exactly
    896x512 or 1920x1088), or a (width, height).
    """
    if isinstance(target, str):
        if target not in UPSCALED_SIZES:
            raise InputError(f"upscale is {target!r}, expected 540p, 1080p or WIDTHxHEIGHT.")
        factor = math.sqrt(math.prod(UPSCALED_SIZES[target]) / (width * height))
        tokens = (max(1, round(side * factor / PIXELS_PER_TOKEN)) for side in (width, height))
        return tuple(count * PIXELS_PER_TOKEN for count in tokens)
    if not isinstance(target, (tuple, list)) or len(target) != 2:
        raise InputError(f"upscale is {target!r}, expected 540p, 1080p or a width and a height.")
    return snap_size(*target)


def audio_tokens(seconds: float) -> int:
    """Audio latents of a clip of this length: 25 for each second, and one."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise InputError(f"seconds is {seconds!r}, expected a length above 0, such as 4.")
    return round(FPS * seconds) + 1


def latent_frames(tokens: int) -> int:
    """Latent frames that go with so many audio latents."""
    return (tokens - 1) // 4 + 1


def decoded_frames(frames: int) -> int:
    """Frames that so many latent frames decode to."""
    return 4 * frames - 3
