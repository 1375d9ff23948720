"""Sizes of a clip: from pixels and seconds to latent pixels, audio latents and frames, and back; and bytes in words.

Video and audio keep one clock: 25 frames and 25 audio latents each second. Four frames make one latent frame, the
first frame makes one by itself.
"""

import logging
import math

from .errors import InputError, shown

FPS = 25  # frames, and audio latents, per second
AUDIO_PER_FRAME = 4  # audio latents, and frames, of a latent frame
PIXELS_PER_LATENT = 16  # pixels per latent pixel, in height and width
PIXELS_PER_TOKEN = 32  # pixels per token: a token covers 2 x 2 latent pixels
MAX_SECONDS = 36_000  # of a clip, however it came about
MAX_SIDE = 8192  # pixels
WIDEST = 2.5  # a clip's longer side by its shorter one, where a picture sets its shape
TEXT_TOKENS = 640  # the longest text the network was trained with; more is cut

log = logging.getLogger(__name__)


def floor_size(width: int, height: int) -> tuple[int, int]:
    """Floor a width and a height, in pixels, to multiples of 32; a change is logged as a warning.

    Raises InputError where either is not a whole number of at least 32.
    """
    for name, value in (("width", width), ("height", height)):
        if isinstance(value, bool) or not isinstance(value, int) or not PIXELS_PER_TOKEN <= value <= MAX_SIDE:
            raise InputError(f"{name} is {shown(value)}, "
                             f"expected a whole number of pixels, {PIXELS_PER_TOKEN} or more, up "
                             f"to {MAX_SIDE}. Choose multiples of {PIXELS_PER_TOKEN}.")
    floored = width // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN, height // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN
    if floored != (width, height):
        log.warning("The size %dx%d is not in multiples of %d; %dx%d is made.", width, height, PIXELS_PER_TOKEN,
                    *floored)
    return floored


def fit_area(width: int, height: int, area: int, name: str) -> tuple[int, int]:
    """A clip's own size in multiples of 32 pixels, or where that is larger than an area, one of its aspect.

    Raises InputError for a clip smaller than 32x32, which begins with `name`: "The video", or "a.mp4:".
    """
    factor = min(1.0, (area / (width * height)) ** 0.5)
    if factor < 1:
        tokens = [max(1, round(side * factor / PIXELS_PER_TOKEN)) for side in (width, height)]
    else:
        tokens = [side // PIXELS_PER_TOKEN for side in (width, height)]
    wide, high = tokens
    if wide < 1 or high < 1:
        raise InputError(f"{name} is {width}x{height} pixels, expected at least 32x32. Give a larger clip.")
    return wide * PIXELS_PER_TOKEN, high * PIXELS_PER_TOKEN


def shape_like(width: int, height: int, area: int) -> tuple[int, int]:
    """The size of a clip, in multiples of 32 pixels, that has the aspect of a picture and about this area, or less.

    Of pictures that are very long the middle is used.
    """
    aspect = min(WIDEST, max(1 / WIDEST, width / height))
    tokens = area / PIXELS_PER_TOKEN**2
    wide, high = (tokens * aspect) ** 0.5, (tokens / aspect) ** 0.5

    def miss(size: tuple[int, int]) -> float:
        return 2 * abs(math.log(size[0] / size[1] / aspect)) + abs(math.log(size[0] * size[1] / tokens))

    near = [(max(1, int(wide) + i), max(1, int(high) + j)) for i in (0, 1) for j in (0, 1)]
    best = min([size for size in near if size[0] * size[1] <= tokens] or near[:1], key=miss)
    return best[0] * PIXELS_PER_TOKEN, best[1] * PIXELS_PER_TOKEN


def audio_length(seconds: float) -> int:
    """Audio latents of a clip of this length: 25 for each second, and one. Raises InputError."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= MAX_SECONDS:
        raise InputError(f"seconds is {shown(seconds)}, expected a length above 0, such as 4, up to {MAX_SECONDS}.")
    return round(FPS * seconds) + 1


def latent_frames(audio_length: int) -> int:
    """Latent frames that go with so many audio latents, or that so many frames begin or fill."""
    return (audio_length - 1) // 4 + 1


def decoded_frames(latent_frames: int) -> int:
    """Frames that so many latent frames decode to."""
    return 4 * latent_frames - 3


def covering_length(frames: int) -> int:
    """Audio latents of the shortest clip that shows so many frames."""
    return full_audio(latent_of_frame(frames - 1) + 1)


def full_audio(latent_frames: int) -> int:
    """Audio latents that go with so many latent frames to the end of the last, as 51 with the 13 of a clip of 2 s."""
    return AUDIO_PER_FRAME * latent_frames - 1


def frames_of(samples: int, rate: int) -> int:
    """Frames in which so many samples are heard, the last one in part."""
    return -(-samples * FPS // rate)


def latent_of_frame(frame: int) -> int:
    """The latent frame that a frame is decoded from: frame 0 from the first, 1 to 4 from the second, ..."""
    return (frame + 3) // 4


def frames_after(frames: int) -> int:
    """Of so many frames those after the last whole latent frame, 0 to 3."""
    return frames - decoded_frames(latent_frames(frames))


def byte_size(count: int) -> str:
    """Bytes for people, in the units of downloads and data sheets: 31.2 GB, 640 MB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.{0 if count >= 10 * unit and unit < 10**9 else 1}f} {name}"
    return f"{count} bytes"
