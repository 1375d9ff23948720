"""Writing a safetensors file piece by piece, so that no model need fit into memory."""

import errno
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from ..atomic import whole_file
from ..errors import CheckpointError
from ..sizes import byte_size
from .finite import is_finite
from .header import DTYPE_NAMES, quoted
from .json_file import read_json_object
from .lazy_tensor import LazyTensor, row_ranges

HASHES = "sha256"  # in the metadata: a JSON table of the hash of each tensor's bytes
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
    hashes = dict.fromkeys(names, "0" * 64)  # as long as the true ones, which are known once all is written
    text = _header(names, entries, metadata or {}, hashes)
    total = len(text) + sum(entry.nbytes for entry in entries.values())
    try:
        if shutil.disk_usage(path.parent).free < total:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with whole_file(path) as file:
            file.write(text)
            for name in names:
                entry, digest = entries[name], hashlib.sha256()
                for rows in row_ranges(entry.height, entry.width) if entry.numel else ():
                    piece = entry.read(rows=rows)
                    if not is_finite(piece):
                        raise CheckpointError(f"{quoted(name)} holds values that are not numbers or are "
                                              f"infinite as {str(piece.dtype)[6:]}, so {path} is not written. "
                                              "The source is damaged, or the dtype is too narrow.")
                    data = piece.contiguous().view(-1).view(torch.uint8).numpy().data
                    digest.update(data)
                    file.write(data)
                    if progress is not None:
                        progress(file.tell(), total)
                hashes[name] = digest.hexdigest()
            file.seek(0)
            file.write(_header(names, entries, metadata or {}, hashes))
    except OSError as error:
        remedy = "Choose another folder."
        if error.errno == errno.ENOSPC:
            remedy = f"{byte_size(total)} are needed: make room, or choose another folder."
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error}). {remedy}") from None
    return path


def _header(names: Sequence[str], entries: Mapping[str, LazyTensor], metadata: Mapping[str, str],
            hashes: Mapping[str, str]) -> bytes:
    """The beginning of the file, up to its tensors. hashes: of the bytes of each, kept for `tampered`."""
    own = {"format": "pt", **metadata, HASHES: json.dumps(hashes, separators=(",", ":"))}
    header: dict[str, object] = {"__metadata__": own}
    end = 0
    for name in names:
        entry, begin = entries[name], end
        if entry.dtype not in DTYPE_NAMES:
            raise CheckpointError(f"{quoted(name)} holds {str(entry.dtype)[6:]}, which no file of weights can hold "
                                  "here. Leave it out.")
        end += entry.nbytes
        header[name] = {"dtype": DTYPE_NAMES[entry.dtype], "shape": entry.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def stored_hashes(metadata: Mapping[str, str]) -> dict[str, str]:
    """The SHA-256 of each tensor's bytes, by name, where a file holds them."""
    found = read_json_object(metadata.get(HASHES, "")) or {}
    return {name: digest for name, digest in found.items() if isinstance(digest, str)}
