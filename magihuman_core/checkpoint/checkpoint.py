"""A checkpoint as a lazy mapping from names to tensors.

A `Checkpoint` is a table of `LazyTensor` (shape, dtype, a way to read). Files, folders, plain mappings,
other key names and other layouts are all just other tables, so a loader sees one thing only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .lazy_tensor import InMemory, LazyTensor

SMALL = 4096  # elements: tensors up to this size are read even where others are not


@dataclass(frozen=True, eq=False)
class Checkpoint(Mapping):
    """Names to tensors, read when asked for. `name` stands in messages; `metadata` is the header's table."""

    entries: Mapping[str, LazyTensor]
    name: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None
    files: tuple[Path, ...] = ()  # that tensors are read from, and the index that names them

    def __getitem__(self, key: str) -> Tensor:
        return self.entries[key].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, key: object) -> bool:
        return key in self.entries

    def read(self, key: str, dtype: torch.dtype | None = None, rows: tuple[int, int] | None = None) -> Tensor:
        """The tensor, or some of its rows, cast while it is read: never whole in memory in both dtypes."""
        return self.entries[key].read(dtype, rows)

    def shape(self, key: str) -> tuple[int, ...]:
        return self.entries[key].shape

    def dtype(self, key: str) -> torch.dtype:
        return self.entries[key].dtype

    def with_entries(self, entries: Mapping[str, LazyTensor]) -> "Checkpoint":
        """The same checkpoint, in name and metadata, with another table."""
        return Checkpoint(entries, self.name, self.metadata, self.path, self.files)


def as_checkpoint(tensors: Mapping[str, Tensor], name: str = "the given tensors") -> Checkpoint:
    """Tensors that are in memory already, wrapped and not copied; a checkpoint is given back as it is."""
    if isinstance(tensors, Checkpoint):
        return tensors
    return Checkpoint({key: InMemory(tensor) for key, tensor in tensors.items()}, name)


def without_content(checkpoint: Checkpoint) -> Checkpoint:
    """The same table, whose tensors read as empty ones of the meta device, but for small ones: to try what would be
    done with them before they are read."""
    return checkpoint.with_entries({
        key: entry if entry.numel <= SMALL else InMemory(torch.empty(entry.shape, dtype=entry.dtype, device="meta"))
        for key, entry in checkpoint.entries.items()})


def renamed(checkpoint: Mapping[str, Tensor], rename: Callable[[str], str | None]) -> Checkpoint:
    """The same tensors under the names rename(key); a key for which it gives None is left out."""
    checkpoint = as_checkpoint(checkpoint)
    names = ((rename(key), entry) for key, entry in checkpoint.entries.items())
    return checkpoint.with_entries({name: entry for name, entry in names if name is not None})


def strip_prefix(checkpoint: Mapping[str, Tensor], prefixes: Sequence[str]) -> Checkpoint:
    """Take the first of the prefixes that occurs off the keys that have it; where none occurs nothing changes."""
    prefix = next((p for p in prefixes if any(key.startswith(p) for key in checkpoint)), None)
    return renamed(checkpoint, lambda key: key.removeprefix(prefix or ""))
