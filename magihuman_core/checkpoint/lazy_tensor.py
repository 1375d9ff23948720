"""A tensor that has not been read yet: the one contract by which weights are read, cut, joined and cast."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor

PIECE = 1 << 20  # elements read, decoded, cast or written at a time: what is in between stays small


def row_ranges(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows, of so many elements each, that hold about PIECE elements."""
    step = max(1, PIECE // max(1, width))
    for top in range(0, height, step):
        yield top, min(top + step, height)


class LazyTensor(ABC):
    """A tensor whose values are read when somebody asks for them. One without dimensions counts as one row."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.shape = tuple(shape)
        self.dtype = dtype

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.shape[0] if self.shape else 1

    @property
    def width(self) -> int:
        """Elements of a row."""
        return prod(self.shape[1:])

    def read(self, dtype: torch.dtype | None = None, rows: tuple[int, int] | None = None) -> Tensor:
        """The values in this dtype (None: as stored); rows: only [begin, end) of the first dimension.

        Only these rows are read. What is in memory with this dtype is handed on without a copy, so nobody may
        write into the result.
        """
        begin, end = (0, self.height) if rows is None else rows
        self._check_rows(begin, end)
        return self._read(begin, end, dtype or self.dtype).to(dtype or self.dtype)

    def rows(self, begin: int, end: int) -> "LazyTensor":
        """The rows [begin, end) as a tensor of their own."""
        self._check_rows(begin, end)
        return self if (begin, end) == (0, self.height) else self._rows(begin, end)

    @abstractmethod
    def _read(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        """The rows [begin, end), [end - begin, ...], or [] of a tensor without dimensions.

        dtype is what is asked for: casting to it may be left to the caller, and saves memory if done on the way.
        """

    def _rows(self, begin: int, end: int) -> "LazyTensor":
        return RowsOf(self, begin, end)

    def _check_rows(self, begin: int, end: int) -> None:
        if not 0 <= begin <= end <= self.height or (not self.shape and begin == end):
            raise ValueError(f"internal error: rows {begin} to {end} of a tensor of shape {list(self.shape)}")


class InMemory(LazyTensor):
    """A tensor that is there already."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor.shape, tensor.dtype)
        self.tensor = tensor

    def _read(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        return self.tensor if (begin, end) == (0, self.height) else self.tensor[begin:end]


class RowsOf(LazyTensor):
    """Some rows of another tensor."""

    def __init__(self, source: LazyTensor, begin: int, end: int) -> None:
        super().__init__((end - begin, *source.shape[1:]), source.dtype)
        self.source, self.begin = source, begin

    def _read(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        return self.source.read(dtype, (self.begin + begin, self.begin + end))


class Cast(LazyTensor):
    """Another tensor rounded to this dtype."""

    def __init__(self, source: LazyTensor, dtype: torch.dtype) -> None:
        super().__init__(source.shape, dtype)
        self.source = source

    def _read(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        return self.source.read(self.dtype, (begin, end))


class Reshaped(LazyTensor):
    """A small tensor in another shape: it is read whole and then cut."""

    def __init__(self, source: LazyTensor, shape: Sequence[int]) -> None:
        super().__init__(shape, source.dtype)
        self.source = source

    def _read(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        values = self.source.read(dtype).reshape(self.shape)
        return values[begin:end] if self.shape else values


class Concatenated(LazyTensor):
    """Tensors one below the other. They are read one at a time, and only those that rows are asked of."""

    def __init__(self, parts: Sequence[LazyTensor]) -> None:
        dtype = parts[0].dtype
        for part in parts[1:]:
            dtype = dtype if part.dtype == dtype else torch.promote_types(dtype, part.dtype)
        super().__init__((sum(part.height for part in parts), *parts[0].shape[1:]), dtype)
        self.parts = tuple(parts)

    def _read(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        parts = self._within(begin, end)
        piece = parts[0].read(dtype)
        if len(parts) == 1:
            return piece
        result = piece.new_empty((end - begin, *piece.shape[1:]))
        result[: len(piece)] = piece
        top = len(piece)
        del piece
        for part in parts[1:]:
            result[top : top + part.height] = part.read(dtype)
            top += part.height
        return result

    def _rows(self, begin: int, end: int) -> LazyTensor:
        # With the dtype that is stored there: split again, joined tensors are what they were.
        return concatenated(self._within(begin, end))

    def _within(self, begin: int, end: int) -> list[LazyTensor]:
        """What of each part lies in the rows [begin, end); never nothing at all."""
        found, top = [], 0
        for part in self.parts:
            low, high = max(begin, top) - top, min(end, top + part.height) - top
            if low < high:
                found.append(part.rows(low, high))
            top += part.height
        return found or [self.parts[0].rows(0, 0)]


def concatenated(parts: Sequence[LazyTensor]) -> LazyTensor:
    """Tensors of one width, one below the other along the first dimension."""
    return parts[0] if len(parts) == 1 else Concatenated(parts)
