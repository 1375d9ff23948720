"""Masks of a picture: what of it is made anew, fp32 [height, width], 1 there and 0 elsewhere."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, shown
from ..sizes import MAX_SIDE
from .image import crop_and_resize

Ellipse = tuple[float, float, float, float]  # centre x, centre y, width, height, in fractions of the picture


def check_mask(mask: Tensor) -> None:
    """Raise InputError for a mask (0..1) of nothing or of everything."""
    if not bool((mask > 0.5).any()):
        raise InputError("The mask is black all over: nothing would change. Paint white what is to be made anew.")
    if bool((mask > 0.5).all()):
        raise InputError("The mask is white all over. Leave it out, or paint black what is to stay.")


def check_edge(edge: int | None) -> None:
    """Raise InputError for what is no width of a soft border, in pixels."""
    if edge is not None and (isinstance(edge, bool) or not isinstance(edge, int) or not 0 <= edge <= MAX_SIDE):
        raise InputError(f"edge is {shown(edge)}, expected a whole number of pixels from 0 to {MAX_SIDE}, or none.")


def ellipse_mask(ellipse: Ellipse, width: int, height: int) -> Tensor:
    """A mask [height, width] that is 1 within an ellipse, such as a mouth: (0.5, 0.65, 0.3, 0.2) is its centre, x and
    y, its width and its height, in fractions of the picture. Raises InputError.
    """
    if len(ellipse) != 4 or not all(isinstance(value, int | float) and 0 < value < 1 for value in ellipse):
        raise InputError(f"The ellipse is {ellipse}, expected centre x, centre y, width and height, each a fraction of "
                         "the picture between 0 and 1.")
    x, y, wide, high = ellipse
    across = ((torch.arange(width) + 0.5) / width - x) / (wide / 2)
    down = ((torch.arange(height) + 0.5) / height - y) / (high / 2)
    found = (across[None, :] ** 2 + down[:, None] ** 2 <= 1).float()
    if not bool(found.any()):
        raise InputError(f"The ellipse {ellipse} covers no pixel of {width}x{height}. Make it larger.")
    return found


def crop_mask(mask: Tensor, width: int, height: int) -> Tensor:
    """A mask of any size, cropped in the middle to a clip's aspect and resized, as pictures and films are.

    Raises InputError where nothing white is left of it.
    """
    from PIL import Image

    image = Image.fromarray((mask.clamp(0, 1) * 255).byte().numpy())
    found = torch.from_numpy(np.array(crop_and_resize(image, width, height), dtype=np.float32) / 255)
    if not bool((found > 0.5).any()):
        raise InputError(f"The mask is {image.width}x{image.height} pixels, and cropped to {width}x{height} nothing of "
                         "it is left. Paint white within the clip.")
    return found


def soft_edge(mask: Tensor, edge: int | None = None) -> Tensor:
    """A mask [height, width] (0..1) that rises from 0 at its own border to 1 over `edge` pixels inward; fp32.

    edge: None: a 32nd of the shorter side. Nothing outside the mask is touched.
    """
    edge = min(mask.shape) // 32 if edge is None else edge
    inside = (mask > 0.5).float()
    if edge < 1:
        return inside
    share = inside[None]  # of a square around each pixel that is inside: a half on a straight border
    for _ in range(2):  # rows, then columns
        share = F.avg_pool1d(F.pad(share, (edge, edge), mode="replicate"), 2 * edge + 1, stride=1).mT
    share = share[0]
    return (2 * share - 1).clamp(0, 1) * inside
