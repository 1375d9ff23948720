"""Images: reading them from files, fitting them to a size, and frames as bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from ..errors import InputError
from .readable import check_readable

if TYPE_CHECKING:
    from PIL import Image


def load_image(path: str | Path) -> Image.Image:
    """Open an image as RGB, turned upright as its EXIF data says.

    Transparent parts are laid over white, as image viewers show them: the colour hidden below them is
    arbitrary. Of an animation the first frame is taken. Raises InputError.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    check_readable(path, "image")
    try:
        with Image.open(path) as opened:
            return to_rgb(opened)
    except UnidentifiedImageError:
        raise InputError(f"{path}: is not an image. Give a PNG, JPEG or WebP file.") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be decoded ({error}). Give another image.") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, upright as its EXIF data says, transparent parts over white."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a channel, which Pillow would clip at 255
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def crop_box(width: int, height: int, target_width: int, target_height: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the largest centred part of an image that has the target's aspect."""
    aspect = target_width / target_height
    if width / height > aspect:
        crop_width, crop_height = int(height * aspect), height
    else:
        crop_width, crop_height = width, int(width / aspect)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return left, top, left + crop_width, top + crop_height


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
