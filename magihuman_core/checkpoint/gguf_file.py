"""Reading GGUF files.

The header (version 2 or 3, little endian): "GGUF", version, number of tensors, number of values, then the
values (key, type, value), then the tensors (name, dimensions from the innermost, type, offset), then the data,
aligned. It is read here, strictly, so that any file can be explained; only decoding block formats such as
Q6_K needs the package `gguf`, which is optional.
"""

import os
import struct
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .finite import check_finite
from .header import DOWNLOAD_AGAIN, MAX_TENSORS, TensorInfo, explain_read_errors, quoted
from .lazy_tensor import LazyTensor, row_ranges
from .quantized import DECODED
from .tensor_file import StoredTensor, TensorFile

PLAIN = {0: torch.float32, 1: torch.float16, 24: torch.int8, 25: torch.int16, 26: torch.int32, 27: torch.int64,
         28: torch.float64, 30: torch.bfloat16}
# type -> (name, elements of a block, bytes of a block)
BLOCKS = {2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
          10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
          14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
          19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
          23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
          39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36)}
NEWER = 64  # types up to this one may be of formats that came later; a larger number is damage
VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_COUNT = 1_000_000  # entries of a list that is not merely skipped
MAX_NAME = 1 << 16  # bytes of a name
SHAPE = "comfy.gguf.orig_shape."  # where a tool stored a tensor under another shape


class _DamagedError(Exception):
    """The header makes no sense; the message says where."""


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file as a checkpoint; block formats are decoded as they are read. Raises CheckpointError."""
    try:
        data = TensorFile(path)
        with explain_read_errors(path), path.open("rb") as file:
            size = path.stat().st_size
            values, tensors = _read_header(_Reader(path, file, size))
            begin = file.tell()
        alignment = values.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20:
            raise _DamagedError("its alignment is absurd")
        begin += -begin % alignment
        entries: dict[str, LazyTensor] = {}
        types = set()
        for name, shape, kind, offset in tensors:
            if name in entries:
                raise _DamagedError(f"the name {quoted(name)} stands twice in it")
            told = _told_shape(values.get(SHAPE + name), shape)
            entries[name] = _entry(data, size, name, shape, told, kind, begin + offset)
            types.add(BLOCKS[kind][0] if kind in BLOCKS else str(PLAIN[kind])[6:])
    except _DamagedError as error:
        raise CheckpointError(f"{path}: is damaged or cut off: {error}. {DOWNLOAD_AGAIN}") from None
    if values.get("split.count", 0) not in (0, 1):
        raise CheckpointError(f"{path}: is one part of a GGUF file that was cut into {values['split.count']}. "
                              "Join the parts first.")
    texts = {key: value for key, value in values.items() if isinstance(value, str)}
    metadata = {**texts, "format": "gguf", "types": ", ".join(sorted(types))}
    return Checkpoint(entries, str(path), metadata, path, (path,))


class _Reader:
    """Reads values and never past the end of the file, whatever lengths it claims."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path = path
        self.file = file
        self.size = size

    def number(self, code: str) -> Any:
        """A number of struct's format code; whole but for f and d."""
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize(code)))
        return value

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) < count:
            raise _DamagedError("it ends within its header")
        return data

    def text(self) -> str:
        """A string, cut for names; the vocabulary of a tokenizer is skipped elsewhere."""
        length = self.number("Q")
        if length > MAX_NAME:
            self.skip(length)
            return ""
        return self.take(length).decode("utf-8", "replace")

    def skip(self, count: int) -> None:
        if count > self.size - self.file.tell():
            raise _DamagedError("it ends within its header")
        self.file.seek(count, os.SEEK_CUR)


def _read_header(reader: _Reader) -> tuple[dict, list]:
    version = reader.number("I") if reader.take(4) == b"GGUF" else 0
    if version not in VERSIONS:
        if version in range(1, NEWER):
            raise CheckpointError(f"{reader.path}: is a GGUF file of version {version}; 2 and 3 are read here. "
                                  "Choose another one.")
        raise _DamagedError("its version is not 2 or 3")
    tensor_count, value_count = reader.number("Q"), reader.number("Q")
    if max(tensor_count, value_count) > MAX_TENSORS:
        raise _DamagedError("its counts are absurd")
    values = {}
    for _ in range(value_count):
        key = reader.text()
        values[key] = _value(reader, reader.number("I"), keep=key.startswith(SHAPE))
    tensors = []
    for _ in range(tensor_count):
        name, dimensions = reader.text(), reader.number("I")
        if dimensions > 8:
            raise _DamagedError(f"{quoted(name)} has {dimensions} dimensions")
        shape = tuple(reader.number("Q") for _ in range(dimensions))[::-1]
        tensors.append((name, shape, reader.number("I"), reader.number("Q")))
    return values, tensors


def _value(reader: _Reader, kind: int, keep: bool, depth: int = 0) -> object:
    """A value. Lists are only passed over, unless keep."""
    if kind in SCALARS:
        return reader.number(SCALARS[kind])
    if kind == STRING:
        return reader.text()
    if kind != ARRAY or depth > 2:
        raise _DamagedError(f"a value has the unknown type {kind}")
    inner, count = reader.number("I"), reader.number("Q")
    if inner in SCALARS and not (keep and count <= 8):
        reader.skip(count * struct.calcsize(SCALARS[inner]))
        return None
    if count > MAX_COUNT:
        raise _DamagedError("a list in it is absurdly long")
    return [_value(reader, inner, keep, depth + 1) for _ in range(count)]


def _told_shape(told: object, stored: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(told, list) and all(type(n) is int and n >= 0 for n in told) and prod(told) == prod(stored):
        return tuple(told)
    return stored


def _entry(file: TensorFile, size: int, name: str, stored: tuple[int, ...], shape: tuple[int, ...], kind: int,
           begin: int) -> LazyTensor:
    type_name, block, block_bytes = BLOCKS.get(kind, ("", 1, 1))
    if 0 in stored and max(stored) > size:  # could claim any width, and modules are built by widths
        raise _DamagedError(f"{quoted(name)} has no valid shape")
    if kind in PLAIN:
        info = TensorInfo(PLAIN[kind], shape, begin)
    elif kind not in BLOCKS and kind < NEWER:
        raise CheckpointError(f"{file.path}: stores {quoted(name)} in GGUF's format {kind}, which is not read here. "
                              "Choose a file in Q8_0, Q6_K, Q4_K or bf16.")
    elif kind not in BLOCKS:
        raise _DamagedError(f"{quoted(name)} has the unknown type {kind}")
    elif not stored or stored[-1] % block:
        raise _DamagedError(f"the rows of {quoted(name)} are not made of whole {type_name} blocks")
    else:
        info = TensorInfo(torch.uint8, (prod(stored) // block, block_bytes), begin)
    if begin + info.nbytes > size:
        raise _DamagedError(f"{quoted(name)} lies behind its end")
    data = StoredTensor(file, info, name)
    return data if kind in PLAIN else BlockTensor(data, block, shape, partial(_decode, file.path, name, kind))


def _decode(path: Path, name: str, kind: int, data: Tensor) -> Tensor:
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError:
        raise CheckpointError(f"{path}: its {BLOCKS[kind][0]} weights need the Python package gguf. Run "
                              "`pip install gguf`, or use a .safetensors version.") from None
    try:
        # As one row: gguf takes 16 rows at a time.
        values = torch.from_numpy(dequantize(data.reshape(1, -1).numpy(), GGMLQuantizationType(kind)))
    except (ValueError, NotImplementedError):  # the sizes were checked, so it is the format
        raise CheckpointError(f"{path}: its {BLOCKS[kind][0]} weights need a newer version of the Python package gguf. "
                              "Run `pip install -U gguf`, or use a .safetensors version.") from None
    check_finite(values, name, str(path))  # a scale may be none: seen here, while the values are in the cache
    return values


class BlockTensor(LazyTensor):
    """A tensor in a block format. data: [blocks, bytes]; block: elements of one; shape: of the result."""

    def __init__(self, data: LazyTensor, block: int, shape: tuple[int, ...],
                 decode: Callable[[Tensor], Tensor]) -> None:
        super().__init__(shape, DECODED)
        self.data, self.block, self.decode = data, block, decode

    def _read(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        result = torch.empty((end - begin, *self.shape[1:]), dtype=dtype)
        if not result.numel():
            return result
        # Stored under another shape, blocks go across our rows: of the first and the last only a part is wanted.
        flat, start, stop = result.view(-1), begin * self.width, end * self.width
        first, last = start // self.block, -(-stop // self.block)
        for top, bottom in row_ranges(last - first, self.block):
            place = (first + top) * self.block
            values = self.decode(self.data.read(rows=(first + top, first + bottom))).view(-1)[max(0, start - place):]
            place = max(0, place - start)
            flat[place : place + len(values)] = values[: len(flat) - place]
        return result
