"""Reading tensors out of a file at known places."""

from io import FileIO
from mmap import ACCESS_COPY, mmap
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from .header import DOWNLOAD_AGAIN, TensorInfo, explain_read_errors
from .lazy_tensor import PIECE, LazyTensor


class TensorFile:
    """Reads tensors out of one file, whose header has been checked.

    Reading copies into fresh memory, and with a cast goes piece by piece through a small buffer, never
    through a memory map: the pages of a map count as resident memory until the system takes them back.
    With mapped=True a tensor that keeps its dtype is a view of the file instead. The map is private:
    writing into such a tensor does not change the file.
    """

    def __init__(self, path: Path, mapped: bool = False) -> None:
        self.path = path
        self.mapped = mapped
        self._map: mmap | None = None

    def read(self, info: TensorInfo, dtype: torch.dtype) -> Tensor:
        """Read a tensor, as stored or cast. Raises CheckpointError."""
        # A view must start at a multiple of its element's size, which the format does not promise.
        if self.mapped and dtype == info.dtype and info.nbytes and info.begin % dtype.itemsize == 0:
            return self._view(info)
        result = torch.empty(info.shape, dtype=dtype)
        if not info.nbytes:
            return result
        flat = result.view(-1)
        with explain_read_errors(self.path), self.path.open("rb", buffering=0) as file:
            file.seek(info.begin)
            if dtype == info.dtype:
                self._fill(file, flat)
                return result
            buffer = _scratch(min(PIECE, flat.numel()), info.dtype)
            for piece in flat.split(PIECE):
                part = buffer[: piece.numel()]
                self._fill(file, part)
                piece.copy_(part)
        return result

    def _fill(self, file: FileIO, flat: Tensor) -> None:
        """Read the next bytes of the file into a contiguous tensor."""
        view = flat.view(torch.uint8).numpy().data
        while view:
            count = file.readinto(view)  # one call reads 2 GiB at most
            if not count:
                raise CheckpointError(f"{self.path}: became shorter while it was read. {DOWNLOAD_AGAIN}")
            view = view[count:]

    def _view(self, info: TensorInfo) -> Tensor:
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap(file.fileno(), 0, access=ACCESS_COPY)
        if info.begin + info.nbytes > len(self._map):
            raise CheckpointError(f"{self.path}: became shorter after it was opened. {DOWNLOAD_AGAIN}")
        count = info.nbytes // info.dtype.itemsize
        return torch.frombuffer(self._map, dtype=info.dtype, count=count, offset=info.begin).view(info.shape)


class StoredTensor(LazyTensor):
    """A tensor in a file."""

    def __init__(self, file: TensorFile, info: TensorInfo) -> None:
        super().__init__(info.shape, info.dtype)
        self.file, self.info = file, info

    def _read(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        info = self.info
        if (begin, end) != (0, self.height):
            first = info.begin + begin * (info.nbytes // self.height)
            info = TensorInfo(info.dtype, (end - begin, *self.shape[1:]), first)
        return self.file.read(info, dtype)


def _scratch(count: int, dtype: torch.dtype) -> Tensor:
    """Memory that goes back to the system at once when it is dropped.

    From the allocator's heap it would not: later small allocations settle in the freed piece, the next one
    has to be taken elsewhere, and a model of many tensors ends up with as many half empty pieces.
    """
    return torch.frombuffer(mmap(-1, count * dtype.itemsize), dtype=dtype)
