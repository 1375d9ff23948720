"""A checkpoint as a lazy mapping from names to tensors.

A `Checkpoint` is a table of `Entry` (shape, dtype, a way to load). Files, folders, plain mappings,
other key names and other layouts are all just other tables, so a loader sees one thing only.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor that has not been read yet. load(dtype) reads it, cast to dtype (None: as stored)."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[torch.dtype | None], Tensor]

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Checkpoint(Mapping):
    """Names to tensors, read when asked for. `name` stands in messages; `metadata` is the header's table."""

    entries: Mapping[str, Entry]
    name: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None

    def __getitem__(self, key: str) -> Tensor:
        return self.entries[key].load(None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, key: object) -> bool:
        return key in self.entries

    def read(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor cast to dtype while it is read: the stored and the cast one are never both whole in memory."""
        return self.entries[key].load(dtype)

    def shape(self, key: str) -> tuple[int, ...]:
        return self.entries[key].shape

    def dtype(self, key: str) -> torch.dtype:
        return self.entries[key].dtype

    def with_entries(self, entries: Mapping[str, Entry]) -> "Checkpoint":
        """The same checkpoint, in name and metadata, with another table."""
        return Checkpoint(entries, self.name, self.metadata, self.path)


def from_tensors(tensors: Mapping[str, Tensor], name: str = "the given tensors") -> Checkpoint:
    """Wrap tensors that are in memory already. They are handed on as they are, not copied."""

    def entry(tensor: Tensor) -> Entry:
        return Entry(tuple(tensor.shape), tensor.dtype, lambda dtype: tensor if dtype is None else tensor.to(dtype))

    return Checkpoint({key: entry(tensor) for key, tensor in tensors.items()}, name)


def renamed(checkpoint: Mapping[str, Tensor], rename: Callable[[str], str | None]) -> Checkpoint:
    """The same tensors under the names rename(key); a key for which it gives None is left out."""
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = from_tensors(checkpoint)
    names = ((rename(key), entry) for key, entry in checkpoint.entries.items())
    return checkpoint.with_entries({name: entry for name, entry in names if name is not None})


def strip_prefix(checkpoint: Mapping[str, Tensor], prefixes: tuple[str, ...], *, only: bool = False) -> Checkpoint:
    """Take the first of the prefixes that occurs off the keys that have it.

    With only=True keys without it are dropped (the rest of a larger model). Without any match nothing changes.
    """
    for prefix in prefixes:
        if any(key.startswith(prefix) for key in checkpoint):
            def rename(key: str, prefix: str = prefix) -> str | None:
                if key.startswith(prefix):
                    return key[len(prefix):]
                return None if only else key
            return renamed(checkpoint, rename)
    return renamed(checkpoint, lambda key: key)
