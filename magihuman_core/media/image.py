"""Images: reading them from files, fitting them to a size, and frames as bytes."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from ..errors import InputError
from ..sizes import shape_like
from .container import open_media
from .readable import check_readable

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 64_000_000  # of an image; photographs have 12 to 50 million
MAX_ASPECT = 500  # of an image's sides
SHORTER = 3000  # pixels that the sides of a larger JPEG have at least, once it is decoded
MUCH = 0.25  # of a picture that is cut away
PLAIN_FORMATS = "png_pipe,jpeg_pipe,webp_pipe,tiff_pipe,bmp_pipe,gif"  # FFmpeg's names
_HEIC = "is a HEIC photograph, which cannot be read here. Export it as JPEG or PNG."

log = logging.getLogger(__name__)


def load_image(path: str | Path) -> Image.Image:
    """Open an image as RGB in sRGB, turned upright as its EXIF data says.

    Transparent parts are laid over white, as image viewers show them: the color hidden below them is
    arbitrary. Of an animation the first frame is taken. What stands beside the pixels never decides: an image with
    damaged metadata is read without it. Raises InputError.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    check_readable(path, "image")
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # of sizes, which are checked here, and of metadata
            opened = Image.open(file)
            if opened.width * opened.height > MAX_PIXELS:
                opened.draft("RGB", (SHORTER, SHORTER))  # a JPEG can be decoded in a smaller size
            check_pixels(*opened.size, f"{path}:")
            opened.load()
            return to_rgb(opened, f"{path}:")
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"{path}: has more pixels than can be read. Give a smaller image.") from None
    except UnidentifiedImageError:
        reason = _HEIC if _is_heic(path) else "is not an image. Give a PNG, JPEG or WebP file."
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = f"cannot be decoded ({error}). Give another image."
    image = _decode_plainly(path)
    if image is None:
        raise InputError(f"{path}: {reason}")
    log.warning("%s: what it says besides its pixels is damaged, and is not used.", path)
    return image


def check_pixels(width: int, height: int, name: str) -> None:
    """Raise InputError for an image too large to be decoded. name: messages begin with it: "The image", or "a.png:"."""
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} is {width}x{height} pixels, more than the {MAX_PIXELS // 1_000_000} million that "
                         "are read. Make it smaller.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(f"{name} is {width}x{height} pixels, too narrow for a clip. Give another image.")


def to_rgb(image: Image.Image, name: str = "The image") -> Image.Image:
    """An image of any mode as RGB in sRGB, upright as its EXIF data says, transparent parts over white.

    name: messages begin with it: "The image", or "a.png:". Raises InputError where the range of values is not known.
    """
    from PIL import Image, ImageOps

    check_pixels(*image.size, name)
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # of damaged EXIF data
        log.warning("%s has damaged EXIF data, which is not used (%s).", name, error)
    profile = image.info.get("icc_profile")
    if image.mode == "F" or image.mode.startswith("I"):
        image = _as_bytes(image, name)
    if image.has_transparency_data:
        image = _in_srgb(image.convert("RGBA"), profile, name)
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode == "LAB":
        from PIL import ImageCms

        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    elif image.mode not in ("L", "CMYK"):
        image = image.convert("RGB")
    return _in_srgb(image, profile, name).convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes | None, name: str) -> Image.Image:
    """The colors that an image's ICC profile stands for, as sRGB has them; without a usable profile as it is."""
    if not profile:
        return image
    try:
        from PIL import ImageCms

        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(own).lower():
            return image
        changed = ImageCms.profileToProfile(
            image, own, ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGBA" if image.mode == "RGBA" else "RGB", flags=ImageCms.Flags.BLACKPOINTCOMPENSATION)
    except Exception as error:  # ImageCms raises its own, OSError or ValueError, or was not built
        log.warning("%s is taken as sRGB: its color profile cannot be used (%s).", name, error)
        return image
    return image if changed is None else changed


def _as_bytes(image: Image.Image, name: str) -> Image.Image:
    """An image of 16 or 32 bits a pixel, or of floating numbers, as 8 bits gray. Raises InputError."""
    import numpy as np
    from PIL import Image

    pixels = np.asarray(image).astype(np.float64)
    low, high = float(pixels.min()), float(pixels.max())
    if image.mode == "F":
        white = 1.0
    elif image.mode == "I":  # 32 bits, in which most programs keep 16, and some 8
        white = 255.0 if high <= 255 else 65535.0 if high <= 65535 else 2.0**31
    else:
        white = 65535.0
    if not 0 <= low <= high <= white * 1.001:  # also where one is not a number
        raise InputError(f"{name} holds values from {low:g} to {high:g}, expected 0 to {white:g}. Save it with 8 bits "
                         "a channel.")
    # Down, as Pillow itself makes 8 bits of 16.
    return Image.fromarray((pixels * (255.999 / white)).clip(0, 255).astype(np.uint8))


def _is_heic(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc")


def _decode_plainly(path: Path) -> Image.Image | None:
    """The pixels alone, by FFmpeg, for which nothing else in a file counts; None where they are damaged, too."""
    try:
        with open_media(path, "image", "", err_detect="explode", format_whitelist=PLAIN_FORMATS) as container:
            stream = container.streams.video[0]
            check_pixels(stream.codec_context.width, stream.codec_context.height, f"{path}:")
            return to_rgb(next(container.decode(stream)).to_image(), f"{path}:")
    except (InputError, StopIteration, IndexError, AttributeError):
        return None


def crop_box(width: int, height: int, target_width: int, target_height: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the largest centred part of an image that has the target's aspect."""
    aspect = target_width / target_height
    if width / height > aspect:
        crop_width, crop_height = int(height * aspect), height
    else:
        crop_width, crop_height = width, int(width / aspect)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return left, top, left + crop_width, top + crop_height


def warn_of_cropping(size: tuple[int, int], target: tuple[int, int]) -> None:
    """Say in the log where much of a picture is cut away, and which size would keep it. Both: width, height."""
    left, top, right, bottom = crop_box(*size, *target)
    lost = 1 - (right - left) * (bottom - top) / (size[0] * size[1])
    better = shape_like(*size, target[0] * target[1])
    if lost > MUCH and better != target:
        log.warning("The picture is %dx%d: %.0f %% of it are cut away to fill %dx%d. A clip of %dx%d shows more.",
                    *size, 100 * lost, *target, *better)


def crop_and_resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """The largest centred part of an image that has the target's aspect, in the target's size (Lanczos).

    Raises InputError where nothing is left of it.
    """
    from PIL import Image

    if image.size == (width, height):
        return image
    # Corners at half pixels are rounded half to even, by Pillow; the model was used with exactly that.
    image = image.crop(crop_box(*image.size, width, height))
    if not image.width or not image.height:
        raise InputError(f"The image is too narrow for {width}x{height}. Give a larger one.")
    return image.resize((width, height), Image.Resampling.LANCZOS)


def fit_image(image: Image.Image, width: int, height: int) -> Tensor:
    """Crop the middle to the target's aspect, resize (Lanczos) -> fp32 [1, 3, 1, height, width] in [-1, 1].

    The leading axes are batch, channels and time: one frame, as the video VAE encodes it.
    """
    import numpy as np

    image = crop_and_resize(image, width, height)
    pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)
    return rearrange(2 * pixels - 1, "h w c -> 1 c 1 h w")


def frames_to_uint8(video: Tensor) -> Tensor:
    """[1, 3, F, h, w] in about [-1, 1] -> uint8 [F, h, w, 3], clipped, and truncated rather than rounded."""
    frames = rearrange(video[0], "c f h w -> f h w c")
    return (frames.float() / 2 + 0.5).clamp(0, 1).mul(255).to(torch.uint8).contiguous()
