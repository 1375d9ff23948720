"""Whether numbers are numbers."""

import torch
from torch import Tensor

from ..errors import CheckpointError
from .header import quoted

PIECE = 1 << 16  # elements looked at together: what a check needs beside the tensor stays small


def check_finite(tensor: Tensor, key: str, name: str) -> None:
    """Raise CheckpointError, with the tensor's key and the file's name, unless all values are finite."""
    if not is_finite(tensor):
        raise CheckpointError(f"{name}: {quoted(key)} holds values that are not numbers or are infinite"
                              f" as {str(tensor.dtype)[6:]}. The file is damaged, or was cast too far.")


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite, at the cost of one sum (which NaN and infinity survive)."""
    if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) and not tensor.is_meta:
        # float8 knows no sum. e4m3fn has NaN only, as 0x7f; in e5m2 all ones in the exponent.
        mask = 0x7F if tensor.dtype == torch.float8_e4m3fn else 0x7C
        bits = tensor.view(torch.uint8).reshape(-1)
        return all(not ((part & mask) == mask).any() for part in bits.split(PIECE))
    if tensor.is_meta or not tensor.is_floating_point() or tensor.dtype.itemsize == 1:
        return True
    # A sum may overflow although each value is finite: only then look at each of them.
    return bool(torch.isfinite(tensor.sum())) or all(
        bool(torch.isfinite(part).all()) for part in tensor.reshape(-1).split(PIECE))
