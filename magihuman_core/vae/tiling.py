"""Putting together what is decoded in parts: windows of time, and overlapping spatial tiles whose seams are blended."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..errors import InputError

OVERLAP = 8  # latent pixels that neighbouring tiles share where nobody says otherwise


def joined_frames(pieces: Iterable[Tensor], length: int, device: torch.device | str | None = None) -> Tensor:
    """Pieces [B, C, f, H, W], `length` frames in all -> [B, C, length, H, W], copied in as they come.

    Against torch.cat the pieces need not all exist beside the result. device: of the result; None: the pieces' own.
    """
    frames, position = torch.empty(0), 0
    for piece in pieces:
        if position == 0:
            frames = piece.new_empty(*piece.shape[:2], length, *piece.shape[3:], device=device)
        frames[:, :, position : position + piece.shape[2]] = piece
        position += piece.shape[2]
    return frames


def decode_in_tiles(decode: Callable[[Tensor], Tensor], z: Tensor, tile: int, overlap: int, scale: int) -> Tensor:
    """Decode z tile by tile, and average neighbours with weights that fall linearly across their overlap.

    decode: [B, C, T, h, w] -> [B, c, F, scale*h, scale*w]. tile and overlap are in latent pixels, along
    both axes. Gives what decode(z) would, up to what lies beyond a tile's edge; with a tile that covers
    the image, exactly that. Raises InputError unless 0 <= overlap < tile.
    """
    if not 0 <= overlap < tile:
        raise InputError(f"Tiles of {tile} latent pixels cannot overlap by {overlap}."
                         " Choose an overlap of at least 0 and less than the tile.")
    height, width = z.shape[-2:]
    if height <= tile and width <= tile:
        return decode(z)
    out = weights = torch.empty(0)
    corners = [(top, left) for top in _starts(height, tile, overlap) for left in _starts(width, tile, overlap)]
    for top, left in corners:
        part = decode(z[..., top : top + tile, left : left + tile])
        if (top, left) == corners[0]:
            out = part.new_zeros(*part.shape[:3], height * scale, width * scale, dtype=torch.float32)
            weights = out.new_zeros(out.shape[-2:])
        h, w = part.shape[-2:]
        rows = _ramp(h, overlap * scale, top > 0, top * scale + h < height * scale)
        columns = _ramp(w, overlap * scale, left > 0, left * scale + w < width * scale)
        weight = torch.outer(rows, columns).to(out.device)
        where = (..., slice(top * scale, top * scale + h), slice(left * scale, left * scale + w))
        out[where] += part * weight
        weights[where] += weight
    return (out / weights).to(part.dtype) if torch.is_grad_enabled() else out.div_(weights).to(part.dtype)


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """First positions of tiles that cover `size`; the last tile is pushed back so that it is whole."""
    last = max(size - tile, 0)
    return [*range(0, last, tile - overlap), last]


def _ramp(size: int, overlap: int, low: bool, high: bool) -> Tensor:
    """Weights along one axis: 1, falling towards 0 over `overlap` pixels at an inner edge, never 0."""
    weight = torch.ones(size)
    edge = (torch.arange(min(overlap, size)) + 0.5) / max(overlap, 1)
    if low:
        weight[: len(edge)] *= edge
    if high:
        weight[size - len(edge) :] *= edge.flip(0)
    return weight
