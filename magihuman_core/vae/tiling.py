"""Putting together what is decoded in parts: windows of time, and overlapping spatial tiles whose seams are blended."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

EachTile = Callable[[Callable[[Any], Iterable[Tensor]], list[Any]], Iterable[Iterable[Tensor]]]
OVERLAP = 8  # latent pixels that neighbouring tiles share where nobody says otherwise


def joined_frames(pieces: Iterable[Tensor], length: int, device: torch.device | str | None = None) -> Tensor:
    """Pieces [B, C, f, H, W], `length` frames in all -> [B, C, length, H, W], copied in as they come.

    Against torch.cat the pieces need not all exist beside the result. device: of the result; None: the pieces' own.
    """
    frames, position = torch.empty(0), 0
    for piece in pieces:
        if piece.shape[2] == length:  # all at once
            return piece.to(device or piece.device)
        if position == 0:
            frames = piece.new_empty(*piece.shape[:2], length, *piece.shape[3:], device=device)
        frames[:, :, position : position + piece.shape[2]] = piece
        position += piece.shape[2]
    return frames


def home_of(z: Tensor) -> torch.device:
    """Where more tiles than one are put together: main memory."""
    return z.device if z.is_meta else torch.device("cpu")


def tile_count(size: int, tile: int, overlap: int = OVERLAP) -> int:
    """Tiles along one axis."""
    return 1 + max(0, -(-(size - tile) // (tile - overlap)))


def decode_in_tiles(decode: Callable[[Tensor, tuple[int, int]], Iterable[Tensor]], z: Tensor, tile: int, overlap: int,
                    scale: int, each: EachTile = map) -> Tensor:
    """Decode z tile by tile, and average neighbours with weights that fall linearly across their overlap.

    decode: [B, C, T, h, w] and its first row and column -> pieces [B, c, f, scale*h, scale*w], one after another in
    time. tile and overlap are in
    latent pixels, along both axes. Gives what decode(z) would, joined, up to what lies beyond a tile's edge; with a
    tile that covers the image, exactly that. More tiles are put together in main memory, where the result is: only
    one piece of one tile is on z's device at a time. each: as map, to share the tiles between devices.
    Raises InputError unless 0 <= overlap < tile.
    """
    if not 0 <= overlap < tile:
        raise InputError(f"Tiles of {tile} latent pixels cannot overlap by {overlap}."
                         " Choose an overlap of at least 0 and less than the tile.")
    height, width = z.shape[-2:]
    if height <= tile and width <= tile:
        pieces = list(decode(z, (0, 0)))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)
    home = home_of(z)
    out = torch.empty(0)
    tiles = [(*vertical, *horizontal) for vertical in _spans(height, tile, overlap, scale)
             for horizontal in _spans(width, tile, overlap, scale)]

    def decode_tile(place: tuple[int, Tensor, int, Tensor]) -> Iterator[Tensor]:
        top, rows, left, columns = place
        weight = torch.outer(rows, columns).to(z.device)
        for piece in decode(z[..., top : top + tile, left : left + tile], (top, left)):
            yield (piece * weight).to(home)

    for (top, rows, left, columns), weighted in zip(tiles, each(decode_tile, tiles), strict=False):
        if not out.numel():  # only the first tile tells how many frames there are
            weighted = pieces = list(weighted)
            length = sum(piece.shape[2] for piece in pieces)
            shape = (*pieces[0].shape[:2], length, height * scale, width * scale)
            out = torch.zeros(shape, dtype=torch.float32, device=home)
            del pieces
        vertical = slice(top * scale, top * scale + len(rows))
        horizontal = slice(left * scale, left * scale + len(columns))
        position = 0
        for piece in weighted:
            out[:, :, position : position + piece.shape[2], vertical, horizontal] += piece
            position += piece.shape[2]
    return out.to(z.dtype)


def _spans(size: int, tile: int, overlap: int, scale: int) -> list[tuple[int, Tensor]]:
    """Tiles along one axis: their first latent pixels, and the weights of their pixels, which add up to one.

    The last tile is pushed back so that it is whole.
    """
    last = max(size - tile, 0)
    length = min(tile, size) * scale
    spans = [(start, _ramp(length, overlap * scale, start > 0, start < last))
             for start in (*range(0, last, tile - overlap), last)]
    total = torch.zeros(size * scale)
    for start, ramp in spans:
        total[start * scale : start * scale + length] += ramp
    return [(start, ramp / total[start * scale : start * scale + length]) for start, ramp in spans]


def _ramp(size: int, overlap: int, low: bool, high: bool) -> Tensor:
    """Weights along one axis: 1, falling towards 0 over `overlap` pixels at an inner edge, never 0."""
    weight = torch.ones(size)
    edge = (torch.arange(min(overlap, size)) + 0.5) / max(overlap, 1)
    if low:
        weight[: len(edge)] *= edge
    if high:
        weight[size - len(edge) :] *= edge.flip(0)
    return weight
