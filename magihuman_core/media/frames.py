"""Frames of a video that are decoded while they are read, so that no more than a few of them are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .image import crop_and_resize


@dataclass(frozen=True)
class Frames:
    """So many frames of one size, read in order, as often as wanted.

    pieces: a function that starts anew and gives uint8 tensors [f, height, width, 3].
    """

    count: int
    height: int
    width: int
    pieces: Callable[[], Iterator[Tensor]]

    @classmethod
    def of(cls, frames: Tensor) -> Frames:
        """Frames that are in memory, uint8 [F, h, w, 3]."""
        count, height, width = frames.shape[:3]
        return cls(count, height, width, lambda: iter([frames]))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        """uint8 [h, w, 3], one by one."""
        for piece in self.pieces():
            yield from piece

    def tensor(self) -> Tensor:
        """All of them, uint8 [F, h, w, 3]."""
        pieces = self.pieces()
        first = next(pieces)
        if len(first) == self.count:
            return first
        frames = torch.empty((self.count, self.height, self.width, 3), dtype=torch.uint8)
        position = 0
        while True:
            frames[position : position + len(first)] = first
            position += len(first)
            if position == self.count:
                return frames
            first = next(pieces)

    def part(self, start: int, end: int) -> Frames:
        """Frames start to end (exclusive). Those before are decoded and passed over."""
        def pieces() -> Iterator[Tensor]:
            position = 0
            for piece in self.pieces():
                chosen = piece[max(0, start - position) : max(0, end - position)]
                position += len(piece)
                if len(chosen):
                    yield chosen
                if position >= end:
                    return

        return Frames(end - start, self.height, self.width, pieces)

    def counted(self, progress: Callable[[int, int], None]) -> Frames:
        """The same frames; progress(frames read, frames in all) is called as they are."""
        def pieces() -> Iterator[Tensor]:
            done = 0
            for piece in self.pieces():
                done += len(piece)
                progress(done, self.count)
                yield piece

        return Frames(self.count, self.height, self.width, pieces)

    def resized(self, width: int, height: int) -> Frames:
        """The same frames, cropped in the middle to the aspect of another size, and resized."""
        if (width, height) == (self.width, self.height):
            return self
        from PIL import Image

        def pieces() -> Iterator[Tensor]:
            for frame in self:
                image = crop_and_resize(Image.fromarray(frame.numpy()), width, height)
                yield torch.from_numpy(np.array(image))[None]

        return Frames(self.count, height, width, pieces)

    def followed_by(self, other: Frames) -> Frames:
        """These frames, then the other ones, which have the same size."""
        def pieces() -> Iterator[Tensor]:
            yield from self.pieces()
            yield from other.pieces()

        return Frames(self.count + other.count, self.height, self.width, pieces)

    def mixed(self, other: Frames, share: Callable[[int, int], Tensor]) -> Frames:
        """These frames and as many of another video, mixed: share(start, end) says how much of the other is seen.

        It gives fp32 that broadcasts to [end - start, height, width, 1], 0 to 1; where it is 0 nothing changes.
        """
        def pieces() -> Iterator[Tensor]:
            position, mine, others = 0, _Reader(self.pieces()), other.pieces()
            for piece in others:
                piece = piece[: self.count - position]
                if not len(piece):
                    return
                ours = mine.read(len(piece)).float()
                ours += share(position, position + len(piece)) * (piece.float() - ours)
                position += len(piece)
                yield ours.round_().clamp_(0, 255).to(torch.uint8)

        return Frames(self.count, self.height, self.width, pieces)


class _Reader:
    """Pieces in other lengths than they come."""

    def __init__(self, pieces: Iterator[Tensor]) -> None:
        self.pieces, self.rest = pieces, torch.empty(0)

    def read(self, count: int) -> Tensor:
        parts = []
        while count:
            if not len(self.rest):
                self.rest = next(self.pieces)
            part, self.rest = self.rest[:count], self.rest[count:]
            parts.append(part)
            count -= len(part)
        return torch.cat(parts)
