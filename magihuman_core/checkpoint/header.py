"""Reading the header of a safetensors file without trusting it.

The format: 8 bytes (little endian) with the header's length, a JSON object
{"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}, then the
tensors' bytes. Everything is checked before a single tensor is read, so that a damaged or hostile
file costs one sentence and no memory: nothing is ever allocated by a size that the file merely claims.
"""

import json
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeGuard

import torch

from ..errors import CheckpointError

FORMAT_HEADER = 100_000_000  # bytes; the limit of the safetensors format itself
MAX_HEADER = 16_000_000  # bytes, and tensors, that are read; the released networks have some thousand of these
MAX_TENSORS = 100_000
MAX_NAME = 1000  # characters of a tensor's
DOWNLOAD_AGAIN = "Download it again."

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}
if hasattr(torch, "float8_e8m0fnu"):  # the block scales of MX formats; a ComfyUI may run on a torch before 2.7
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu
# The format's other dtypes, which nothing here can compute with.
NOT_READ = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64")
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: dtype, shape and the first byte, counted from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def quoted(key: object) -> str:
    """A name out of an untrusted file, made safe and short enough for a message."""
    text = ascii(key)
    return text if len(text) <= 120 else text[:117] + "..."


@contextmanager
def explain_read_errors(path: Path) -> Iterator[None]:
    """Around reading a file or folder: what the system refuses becomes a CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from None


def file_mode(path: Path) -> int:
    """The mode of a file or folder, by which both are told apart; 0 where there is none.

    Raises CheckpointError for what cannot be a name, or may not be looked at.
    """
    try:
        with explain_read_errors(path):
            try:
                return path.stat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                return 0
    except CheckpointError:  # a ValueError too
        raise
    except ValueError:
        raise CheckpointError(f"{str(path)!r}: is not a possible name of a file. Check the name.") from None


def file_format(path: Path) -> str:
    """What a file is by its first bytes. Raises CheckpointError when it cannot be opened.

    One of safetensors, gguf, pickle, lfs, html, json, compressed, text, empty, other.
    """
    with explain_read_errors(path):
        if not stat.S_ISREG(path.stat().st_mode):  # which might be waited for, or read, without end
            raise CheckpointError(f"{path}: is a device or a pipe, expected a file.")
        with path.open("rb") as file:
            start = file.read(512)
    if not start:
        return "empty"
    # First, because "\x80\x02" may begin a pickle as well as a safetensors file with a 640 byte header.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= FORMAT_HEADER:
        return "safetensors"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        return "lfs"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        return "html"
    if start.startswith(b"GGUF"):
        return "gguf"
    if start.startswith(b"PK\x03\x04") or (start[0] == 0x80 and start[1:2] in (b"\2", b"\3", b"\4", b"\5")):
        return "pickle"
    if start.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!", b"\xfd7zXZ")):
        return "compressed"
    if text.startswith((b"{", b"[")):
        return "json"
    if all(byte in b"\t\r\n\f" or 32 <= byte < 127 for byte in start):
        return "text"
    return "other"


def explain_format(path: Path, found: str) -> str:
    """The sentence for a file that is not safetensors: what it is and what to do."""
    if found == "text":
        with path.open("rb") as file:
            line = file.read(80).decode("ascii", "replace").split("\n")[0].strip()
        return f"{path}: is a short text, not weights: it begins {line!r}. {DOWNLOAD_AGAIN}"
    return f"{path}: " + {
        "empty": f"is empty. {DOWNLOAD_AGAIN}",
        "lfs": "is a Git-LFS pointer, not the weights themselves. Fetch the real file with `git lfs pull`, "
               "or download it in the browser.",
        "html": "is a web page saved under the name of a weight file. Download the file itself "
                "(often a log-in or a licence has to be accepted first).",
        "pickle": "is a Python pickle, which can run code when it is opened, so it is not read. Use a .safetensors "
                  "version of it: the official files, of which magihuman convert --dtype int8 makes an INT8 one.",
        "gguf": "is a GGUF file, where safetensors is expected.",
        "compressed": "is compressed. Unpack it first.",
        "json": "is a JSON text, not weights. Give the .safetensors file, or its *.safetensors.index.json.",
        "other": f"is not a safetensors file, or its beginning is damaged. {DOWNLOAD_AGAIN}",
    }[found]


def read_header(path: Path) -> tuple[Mapping[str, TensorInfo], Mapping[str, str]]:
    """The tensors and the metadata of one safetensors file, from its header, which is checked.

    Raises CheckpointError, naming the file, when it is something else, damaged, cut off, or when its tensors overlap,
    leave holes, lie outside the file or do not fit their dtype and shape.
    """
    found = file_format(path)
    if found != "safetensors":
        raise CheckpointError(explain_format(path, found))
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size:
            raise CheckpointError(f"{path}: is cut off inside its header. {DOWNLOAD_AGAIN}")
        if length > MAX_HEADER:
            raise CheckpointError(f"{path}: has a header of {length:,} bytes, far more than any model. Choose another "
                                  "file.")
        text = file.read(length)
    if (count := text.count(b'"data_offsets"')) > MAX_TENSORS:
        raise CheckpointError(f"{path}: names {count:,} tensors, far more than any model has. Choose another file.")
    try:
        entries = json.loads(text, object_pairs_hook=_no_duplicates)
        if not isinstance(entries, dict):
            raise ValueError("its header is not an object")
        metadata = entries.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("its metadata is not a table of texts")
        tensors = {name: _tensor_info(name, entry, 8 + length, size) for name, entry in entries.items()}
    except _NotReadError as error:
        raise CheckpointError(f"{path}: {error}. Choose a file in bf16, fp16, fp32, fp8 or int8.") from None
    except (ValueError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else "its header is not valid JSON"
        raise CheckpointError(f"{path}: is damaged: {reason}. {DOWNLOAD_AGAIN}") from None
    _check_layout(path, tensors, 8 + length, size)
    return tensors, metadata


class _NotReadError(ValueError):
    """A dtype of the format that is not read here; the message says which."""


def _no_duplicates(pairs: list) -> dict:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        name = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the name {quoted(name)} stands twice in its header")
    return result


def _tensor_info(name: str, entry: object, data_begin: int, size: int) -> TensorInfo:
    if not isinstance(entry, dict) or len(name) > MAX_NAME:
        raise ValueError(f"{quoted(name)} has no description, or is too long a name")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if isinstance(dtype, str) and dtype in NOT_READ and dtype not in DTYPES:
        raise _NotReadError(f"stores {quoted(name)} as {dtype}, which is not read here")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{quoted(name)} has the unknown dtype {quoted(dtype)}")
    # A tensor without elements could claim any width, and modules are built by widths: none exceeds the file.
    if not _is_list_of_sizes(shape) or len(shape) > 16 or (0 in shape and max(shape) > size):
        raise ValueError(f"{quoted(name)} has no valid shape")
    if not _is_list_of_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{quoted(name)} has no valid place in the file")
    info = TensorInfo(DTYPES[dtype], tuple(shape), data_begin + offsets[0])
    if info.nbytes != offsets[1] - offsets[0]:
        raise ValueError(f"{quoted(name)} has {offsets[1] - offsets[0]} bytes, its shape needs {info.nbytes}")
    return info


def _is_list_of_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_layout(path: Path, tensors: Mapping[str, TensorInfo], begin: int, size: int) -> None:
    """Tensors must follow one another without gap or overlap, to the last byte of the file."""
    position = begin
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].nbytes)):
        if info.begin != position:
            fault = "overlaps another tensor" if info.begin < position else "leaves a hole before it"
            raise CheckpointError(f"{path}: is damaged: {quoted(name)} {fault}. {DOWNLOAD_AGAIN}")
        position += info.nbytes
    if position > size:
        raise CheckpointError(f"{path}: is cut off: {size:,} of {position:,} bytes are there. {DOWNLOAD_AGAIN}")
    if position < size:
        raise CheckpointError(f"{path}: is damaged: {size - position:,} bytes follow its last tensor. {DOWNLOAD_AGAIN}")
