"""Reading tensors out of a file at known places."""

import os
from io import BufferedReader, FileIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple
from warnings import catch_warnings, filterwarnings

import torch
from torch import Tensor

from ..errors import CheckpointError
from .finite import check_finite
from .header import DOWNLOAD_AGAIN, TensorInfo, explain_read_errors
from .lazy_tensor import PIECE, LazyTensor


class Stamp(NamedTuple):
    """What changes when somebody writes into a file, or puts another one in its place."""

    size: int
    changed: int  # nanoseconds

    @classmethod
    def of(cls, file: Path | int) -> "Stamp":
        """Of a path or an open file's number. Raises OSError."""
        status = os.stat(file)  # noqa: PTH116  a Path knows no open file
        return cls(status.st_size, status.st_mtime_ns)


class TensorFile:
    """Reads tensors out of one file, whose header has been checked.

    Reading copies into fresh memory, and with a cast goes piece by piece through a small buffer, never
    through a memory map: the pages of a map count as resident memory until the system takes them back.
    With mapped=True a tensor that keeps its dtype is a view of the file instead, which nobody may write into: the map
    is read-only, so that no system reserves memory for it. While such views are in use, whoever cuts the file off ends
    the process that looks at them; replacing it by renaming another one harms nothing.

    Each read makes sure that the file is still the one that it was when this was made: before its header is read.
    """

    def __init__(self, path: Path, mapped: bool = False) -> None:
        """Raises CheckpointError where there is no such file."""
        self.path = path
        self.mapped = mapped
        self._mapped: tuple[BufferedReader, mmap] | None = None
        with explain_read_errors(path):
            self.stamp = Stamp.of(path)

    def read(self, info: TensorInfo, dtype: torch.dtype, key: str = "") -> Tensor:
        """Read a tensor, as stored or cast. key: its name, for messages.

        Whether its values are finite is seen while each piece is still in the processor's cache: memory is not read
        again for it. Raises CheckpointError, also for values that are not; those of a view are not looked at.
        """
        # A view must start at a multiple of its element's size, which the format does not promise.
        if self.mapped and dtype == info.dtype and info.nbytes and info.begin % dtype.itemsize == 0:
            return self._view(info)
        result = torch.empty(info.shape, dtype=dtype)
        if not info.nbytes:
            return result
        flat = result.view(-1)
        with explain_read_errors(self.path), self.path.open("rb", buffering=0) as file:
            self._check(file)
            file.seek(info.begin)
            same = dtype == info.dtype
            buffer = flat if same else _scratch(min(PIECE, flat.numel()), info.dtype)
            for piece in flat.split(PIECE):
                part = piece if same else buffer[: piece.numel()]
                self._fill(file, part)
                check_finite(part, key, str(self.path))
                if not same:
                    piece.copy_(part)
        return result

    def _check(self, file: BufferedReader | FileIO) -> None:
        """Raise CheckpointError where an open file is not the one that the header was read of."""
        found = Stamp.of(file.fileno())
        if found != self.stamp:
            became = "became shorter" if found.size < self.stamp.size else "was changed or replaced"
            raise CheckpointError(f"{self.path}: {became} after it was opened. Load it again once it is complete.")

    def _fill(self, file: FileIO, flat: Tensor) -> None:
        """Read the next bytes of the file into a contiguous tensor."""
        view = flat.view(torch.uint8).numpy().data
        while view:
            count = file.readinto(view)  # one call reads 2 GiB at most
            if not count:
                raise CheckpointError(f"{self.path}: became shorter while it was read. {DOWNLOAD_AGAIN}")
            view = view[count:]

    def _view(self, info: TensorInfo) -> Tensor:
        with explain_read_errors(self.path):
            if self._mapped is None:
                file = self.path.open("rb")
                self._mapped = file, mmap(file.fileno(), 0, access=ACCESS_READ)
            file, mapped = self._mapped
            self._check(file)
        count = info.nbytes // info.dtype.itemsize
        with catch_warnings():
            filterwarnings("ignore", message="The given buffer is not writable")  # which is intended
            return torch.frombuffer(mapped, dtype=info.dtype, count=count, offset=info.begin).view(info.shape)


class StoredTensor(LazyTensor):
    """A tensor in a file."""

    def __init__(self, file: TensorFile, info: TensorInfo, key: str = "") -> None:
        super().__init__(info.shape, info.dtype)
        self.file, self.info, self.key = file, info, key

    def _read(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        info = self.info
        if (begin, end) != (0, self.height):
            first = info.begin + begin * (info.nbytes // self.height)
            info = TensorInfo(info.dtype, (end - begin, *self.shape[1:]), first)
        return self.file.read(info, dtype, self.key)


def _scratch(count: int, dtype: torch.dtype) -> Tensor:
    """Memory that goes back to the system at once when it is dropped.

    From the allocator's heap it would not: later small allocations settle in the freed piece, the next one
    has to be taken elsewhere, and a model of many tensors ends up with as many half empty pieces.
    """
    return torch.frombuffer(mmap(-1, count * dtype.itemsize), dtype=dtype)
