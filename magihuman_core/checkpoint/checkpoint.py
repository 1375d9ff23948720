"""A checkpoint as a lazy mapping from names to tensors.

A `Checkpoint` is a table of `Entry` (shape, dtype, a way to load). Files, folders, plain mappings,
other key names and other layouts are all just other tables, so a loader sees one thing only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class Load(Protocol):
    """Reads a tensor, cast to dtype (None: as stored); rows: only [begin, end) of its first dimension."""

    def __call__(self, dtype: torch.dtype | None = None, rows: tuple[int, int] | None = None) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor that has not been read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Load

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def rows(self, begin: int, end: int) -> "Entry":
        """The rows [begin, end) as an entry of their own. Only these are read."""

        def load(dtype: torch.dtype | None = None, rows: tuple[int, int] | None = None) -> Tensor:
            low, high = (0, end - begin) if rows is None else rows
            return self.load(dtype, (begin + low, begin + high))

        whole = (begin, end) == (0, self.shape[0])
        return self if whole else Entry((end - begin, *self.shape[1:]), self.dtype, load)


@dataclass(frozen=True, eq=False)
class Checkpoint(Mapping):
    """Names to tensors, read when asked for. `name` stands in messages; `metadata` is the header's table."""

    entries: Mapping[str, Entry]
    name: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None

    def __getitem__(self, key: str) -> Tensor:
        return self.entries[key].load()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, key: object) -> bool:
        return key in self.entries

    def read(self, key: str, dtype: torch.dtype | None = None, rows: tuple[int, int] | None = None) -> Tensor:
        """The tensor, or some of its rows, cast while it is read: never whole in memory in both dtypes."""
        return self.entries[key].load(dtype, rows)

    def shape(self, key: str) -> tuple[int, ...]:
        return self.entries[key].shape

    def dtype(self, key: str) -> torch.dtype:
        return self.entries[key].dtype

    def with_entries(self, entries: Mapping[str, Entry]) -> "Checkpoint":
        """The same checkpoint, in name and metadata, with another table."""
        return Checkpoint(entries, self.name, self.metadata, self.path)


def from_tensors(tensors: Mapping[str, Tensor], name: str = "the given tensors") -> Checkpoint:
    """Wrap tensors that are in memory already. They are handed on as they are, not copied."""
    return Checkpoint({key: tensor_entry(tensor) for key, tensor in tensors.items()}, name)


def tensor_entry(tensor: Tensor) -> Entry:
    """The entry of a tensor in memory."""

    def load(dtype: torch.dtype | None = None, rows: tuple[int, int] | None = None) -> Tensor:
        part = tensor if rows is None else tensor[rows[0] : rows[1]]
        return part if dtype is None else part.to(dtype)

    return Entry(tuple(tensor.shape), tensor.dtype, load)


@dataclass(frozen=True, slots=True)
class Joined(Entry):
    """Entries one below the other. Rows of it are the rows of its parts, so that nothing else is read."""

    parts: Sequence[Entry]

    def rows(self, begin: int, end: int) -> Entry:
        cut, top = [], 0
        for part in self.parts:
            low, high = max(begin, top) - top, min(end, top + part.shape[0]) - top
            if low < high:
                cut.append(part.rows(low, high))
            top += part.shape[0]
        return concatenated(cut or [self.parts[0].rows(0, 0)])


def concatenated(parts: Sequence[Entry]) -> Entry:
    """Entries one below the other, along the first dimension. They are read one at a time."""
    if len(parts) == 1:
        return parts[0]
    height = sum(part.shape[0] for part in parts)
    stored = parts[0].dtype
    for part in parts[1:]:
        stored = stored if part.dtype == stored else torch.promote_types(stored, part.dtype)

    def load(dtype: torch.dtype | None = None, rows: tuple[int, int] | None = None) -> Tensor:
        begin, end = (0, height) if rows is None else rows
        result = None
        top = 0  # the row at which a part begins
        for part in parts:
            low, high = max(begin, top) - top, min(end, top + part.shape[0]) - top
            if low < high or (result is None and part is parts[-1]):
                piece = part.load(dtype or stored, (low, max(low, high)))
                if result is None:
                    result = piece.new_empty((end - begin, *piece.shape[1:]))
                result[top + low - begin : top + low - begin + piece.shape[0]] = piece
            top += part.shape[0]
        return result

    return Joined((height, *parts[0].shape[1:]), stored, load, tuple(parts))


def renamed(checkpoint: Mapping[str, Tensor], rename: Callable[[str], str | None]) -> Checkpoint:
    """The same tensors under the names rename(key); a key for which it gives None is left out."""
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = from_tensors(checkpoint)
    names = ((rename(key), entry) for key, entry in checkpoint.entries.items())
    return checkpoint.with_entries({name: entry for name, entry in names if name is not None})


def strip_prefix(checkpoint: Mapping[str, Tensor], prefixes: Sequence[str]) -> Checkpoint:
    """Take the first of the prefixes that occurs off the keys that have it; where none occurs nothing changes."""
    prefix = next((p for p in prefixes if any(key.startswith(p) for key in checkpoint)), None)
    return renamed(checkpoint, lambda key: key.removeprefix(prefix or ""))
