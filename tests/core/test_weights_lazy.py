"""The one contract for reading a tensor, held by every kind of lazy tensor."""

import pytest
import torch
from safetensors.torch import save_file

from magihuman_core.checkpoint.gguf_file import BlockTensor
from magihuman_core.checkpoint.header import TensorInfo
from magihuman_core.checkpoint.lazy_tensor import (
    Cast,
    Concatenated,
    InMemory,
    LazyTensor,
    Reshaped,
    RowsOf,
    concatenated,
)
from magihuman_core.checkpoint.open import open_stored
from magihuman_core.checkpoint.pickled import Strided
from magihuman_core.checkpoint.quantize import ComputedRows, SharedScale
from magihuman_core.checkpoint.quantized import Quantized, Reinterpreted, RowScales
from magihuman_core.checkpoint.tensor_file import StoredTensor, TensorFile
from magihuman_core.errors import CheckpointError
from magihuman_core.weights.align import WithZeroColumns
from magihuman_core.weights.audio_keys import FoldedWeight

MATRIX = torch.arange(24.0).reshape(6, 4) - 7
BYTES = MATRIX.to(torch.int8)
FP8 = MATRIX.to(torch.float8_e4m3fn)
SCALES = torch.tensor([0.5, 2.0, 1.0])
NUMBER = torch.tensor(1.5)
# name -> (the lazy tensor, what it must read as); a file's stand in the fixture below
MADE = {
    "in memory": (InMemory(MATRIX), MATRIX),
    "in memory, a number": (InMemory(NUMBER), NUMBER),
    "in memory, no rows": (InMemory(MATRIX[:0]), MATRIX[:0]),
    "in memory, fp8": (InMemory(FP8), FP8),
    "rows": (RowsOf(InMemory(torch.cat([MATRIX, MATRIX])), 3, 9), torch.cat([MATRIX[3:], MATRIX[:3]])),
    "cast": (Cast(InMemory(MATRIX / 3), torch.bfloat16), (MATRIX / 3).bfloat16()),
    "cast, a number": (Cast(InMemory(NUMBER), torch.float16), NUMBER.half()),
    "reshaped": (Reshaped(InMemory(MATRIX[None]), (6, 4)), MATRIX),
    "reshaped to a number": (Reshaped(InMemory(NUMBER.reshape(1, 1)), ()), NUMBER),
    "concatenated": (Concatenated([InMemory(MATRIX[:2]), InMemory(MATRIX[2:2]), InMemory(MATRIX[2:])]), MATRIX),
    "concatenated, no rows": (Concatenated([InMemory(MATRIX[:0]), InMemory(MATRIX[:0])]), MATRIX[:0]),
    "gguf blocks": (BlockTensor(InMemory(BYTES.view(torch.uint8)), 4, (6, 4), lambda data: data.view(torch.int8) * 0.5),
                    (MATRIX / 2).bfloat16()),
    "gguf blocks across rows": (BlockTensor(InMemory(BYTES.view(torch.uint8)), 4, (12, 2),
                                            lambda data: data.view(torch.int8) * 0.5),
                                (MATRIX / 2).bfloat16().reshape(12, 2)),
    "quantized, one scale": (Quantized(InMemory(BYTES), InMemory(NUMBER)), (MATRIX * 1.5).bfloat16()),
    "quantized, a scale per row": (Quantized(InMemory(FP8), InMemory(torch.arange(6.0))),
                                   (FP8.float() * torch.arange(6.0)[:, None]).bfloat16()),
    "scales of groups": (RowScales(InMemory(SCALES[:, None]), 6), SCALES.repeat_interleave(2)),
    "one scale for all rows": (RowScales(InMemory(NUMBER), 6), NUMBER.repeat(6)),
    "other dtype of bytes": (Reinterpreted(InMemory(FP8.view(torch.uint8)), torch.float8_e4m3fn), FP8),
    "shared scale": (SharedScale([InMemory(MATRIX), InMemory(-2 * MATRIX)], 16.0), torch.tensor(2.0)),
    "computed": (ComputedRows(InMemory(MATRIX), torch.int8, torch.round), BYTES),
    "computed, narrower": (ComputedRows(InMemory(MATRIX), torch.float32, lambda rows: rows.sum(1, True), width=1),
                           MATRIX.sum(1, True)),
    "zero columns": (WithZeroColumns(InMemory(MATRIX), 6), torch.nn.functional.pad(MATRIX, (0, 2))),
    "zero columns, bytes": (WithZeroColumns(InMemory(BYTES), 6), torch.nn.functional.pad(BYTES, (0, 2))),
    "weight norm": (FoldedWeight(InMemory(torch.full((6, 1, 1), 3.0)), InMemory(torch.ones(6, 3, 3))),
                    torch.ones(6, 3, 3)),
    "strided": (Strided(InMemory(MATRIX.flatten()), (4, 6), (1, 4)), MATRIX.t()),
}  # fmt: skip
STORED = {"matrix": MATRIX, "number": NUMBER, "bytes": BYTES, "fp8": FP8, "no rows": MATRIX[:0].clone()}
CASES = [*MADE, *(f"{how}: {name}" for how in ("stored", "mapped") for name in STORED)]


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    if request.param in MADE:
        return MADE[request.param]
    how, name = request.param.split(": ")
    save_file(STORED, tmp_path / "x.safetensors")
    return open_stored(tmp_path / "x.safetensors", mapped=how == "mapped").entries[name], STORED[name]


def equal(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.dtype == expected.dtype and torch.equal(found.double(), expected.double())


def test_every_kind_reads_alike(case):
    """By position and by keyword, every dtype and range of rows."""
    lazy, expected = case
    assert lazy.shape == expected.shape and lazy.dtype == expected.dtype
    assert lazy.numel == expected.numel() and lazy.nbytes == expected.nbytes
    assert equal(lazy.read(), expected)
    precise = lazy.read(torch.float32)  # of a quantized weight finer than the bf16 that it is read as by default
    assert precise.dtype == torch.float32 and equal(precise.to(expected.dtype), expected)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert equal(lazy.read(dtype=dtype), lazy.read(dtype)) and lazy.read(dtype).dtype == dtype
    height = lazy.height
    if not lazy.shape:
        assert height == 1 and equal(lazy.read(rows=(0, 1)), expected)
        return
    for begin, end in ((0, height), (0, 0), (height, height), (height // 3, height), (height // 2, height // 2 + 1)):
        end = min(end, height)
        assert equal(lazy.read(None, (begin, end)), expected[begin:end])
        assert equal(lazy.read(dtype=torch.float32, rows=(begin, end)), precise[begin:end])
        part = lazy.rows(begin, end)
        assert part.shape == expected[begin:end].shape and equal(part.read(), expected[begin:end])
        if end - begin > 1:
            assert equal(part.rows(1, end - begin).read(rows=(0, 1)), expected[begin + 1 : begin + 2])


def test_rows_that_are_not_there_are_refused(case):
    lazy, _ = case
    for rows in ((0, lazy.height + 1), (-1, 1), (1, 0)):
        with pytest.raises(ValueError, match="internal error"):
            lazy.read(rows=rows)
        with pytest.raises(ValueError, match="internal error"):
            lazy.rows(*rows)


def test_no_kind_is_left_out():
    kinds = {type(lazy) for lazy, _ in MADE.values()} | {StoredTensor}
    own = [kind for kind in LazyTensor.__subclasses__() if kind.__module__.startswith("magihuman_core.")]
    assert kinds == set(own)


def test_what_is_in_memory_is_handed_on_without_a_copy():
    assert InMemory(MATRIX).read() is MATRIX and InMemory(MATRIX).read(torch.float32) is MATRIX
    assert InMemory(MATRIX).read(rows=(2, 4)).data_ptr() == MATRIX[2:].data_ptr()


def test_joined_tensors_of_several_dtypes_read_as_the_widest():
    """Their rows keep their own dtype, so that splitting a joined tensor again changes nothing."""
    joined = concatenated([InMemory(MATRIX[:2].half()), InMemory(MATRIX[2:].bfloat16())])
    assert equal(joined.read(), MATRIX) and equal(joined.read(rows=(0, 1)), MATRIX[:1])
    assert equal(joined.rows(1, 3).read(), MATRIX[1:3]) and equal(joined.rows(2, 6).read(), MATRIX[2:].bfloat16())


def test_of_a_file_only_the_rows_that_are_asked_for_are_read(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"matrix": MATRIX}, path)
    whole = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(whole - MATRIX[2:].nbytes)
    # As it would be, had it been cut off in the instant between a read's check and the read itself.
    stored = StoredTensor(TensorFile(path), TensorInfo(MATRIX.dtype, tuple(MATRIX.shape), whole - MATRIX.nbytes))
    assert equal(concatenated([stored, stored]).read(torch.bfloat16, (0, 2)), MATRIX[:2].bfloat16())
    with pytest.raises(CheckpointError, match="became shorter"):
        stored.read(rows=(1, 3))
