"""Writing a safetensors file piece by piece, so that no model need fit into memory."""

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..atomic import whole_file
from ..errors import CheckpointError
from ..sizes import byte_size
from .assign import is_finite
from .header import DTYPE_NAMES, quoted
from .lazy_tensor import LazyTensor, row_ranges

Progress = Callable[[int, int], None]  # bytes written, bytes in all


def write_checkpoint(path: str | Path, entries: Mapping[str, LazyTensor], metadata: Mapping[str, str] | None = None, *,
                     progress: Progress | None = None) -> Path:
    """Write entries as one safetensors file, reading each in pieces while it is written.

    The file appears under its name only when it is whole: before, it has a temporary name in the same folder,
    and an error or an interruption removes it. An existing file is replaced.
    Raises CheckpointError when it cannot be written, when space is short, or for values that are not finite.
    """
    path = Path(path)
    # Wide elements first: every tensor is then aligned to its own element size.
    names = sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name in names:
        entry, begin = entries[name], end
        end += entry.nbytes
        header[name] = {"dtype": DTYPE_NAMES[entry.dtype], "shape": entry.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    total = 8 + len(text) + end
    try:
        if shutil.disk_usage(path.parent).free < total:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with whole_file(path) as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                entry = entries[name]
                for rows in row_ranges(entry.height, entry.width) if entry.numel else ():
                    piece = entry.read(rows=rows)
                    if not is_finite(piece):
                        raise CheckpointError(f"{quoted(name)} holds values that are not numbers or are "
                                              f"infinite as {str(piece.dtype)[6:]}, so {path} is not written. "
                                              "The source is damaged, or the dtype is too narrow.")
                    file.write(piece.contiguous().view(-1).view(torch.uint8).numpy().data)
                    if progress is not None:
                        progress(file.tell(), total)
    except OSError as error:
        remedy = "Choose another folder."
        if error.errno == errno.ENOSPC:
            remedy = f"{byte_size(total)} are needed: make room, or choose another folder."
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error}). {remedy}") from None
    return path
