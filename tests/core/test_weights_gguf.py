"""GGUF files, written by the gguf package: with plain and quantized tensors, whole and damaged."""

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from magihuman_core import load_dit, load_text_encoder
from magihuman_core.checkpoint.lazy_tensor import row_ranges
from magihuman_core.errors import CheckpointError
from magihuman_core.tools.convert import convert
from magihuman_core.tools.inspect import describe
from magihuman_core.weights.open import open_checkpoint
from magihuman_core.weights.recognize import recognize

from .golden import relative, small_model

gguf = pytest.importorskip("gguf")
quants = pytest.importorskip("gguf.quants")

Type = gguf.GGMLQuantizationType


def write(path: Path, tensors: dict[str, torch.Tensor], quantize: Type | None = None) -> Path:
    """All tensors, and matrices that fit its blocks quantized."""
    writer = gguf.GGUFWriter(path, "t5gemma")
    writer.add_string("general.name", "test")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc"] * 100)
    writer.add_array("tokenizer.ggml.scores", [0.5] * 200)
    writer.add_bool("flag", True)
    for name, tensor in tensors.items():
        block = gguf.GGML_QUANT_SIZES[quantize][0] if quantize else 1
        if quantize and tensor.dim() == 2 and tensor.shape[1] % block == 0 and "norm" not in name:
            writer.add_tensor(name, quants.quantize(tensor.float().numpy(), quantize), raw_dtype=quantize)
        elif tensor.dtype == torch.bfloat16:
            # A bf16 tensor goes in as its bytes: numpy has no such type.
            data = tensor.contiguous().view(torch.uint8).numpy().reshape(*tensor.shape[:-1], -1)
            writer.add_tensor(name, data, raw_dtype=Type.BF16)
        else:
            writer.add_tensor(name, tensor.numpy())
    return finished(writer, path)


def finished(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_plain_tensors_are_exact(official, tmp_path):
    checkpoint = open_checkpoint(write(tmp_path / "net.gguf", official), "network")
    assert set(checkpoint) == set(official)
    for key, tensor in official.items():
        assert checkpoint.dtype(key) == tensor.dtype
        assert torch.equal(checkpoint[key], tensor)
    load_dit(tmp_path / "net.gguf")


@pytest.mark.parametrize(("kind", "allowed"), [(Type.Q8_0, 1e-2), (Type.Q5_1, 5e-2), (Type.Q4_0, 0.15)])
def test_quantized_networks_and_encoders_are_decoded(kind, allowed, tmp_path):
    for name in ("network", "text_encoder"):
        tensors = small_model(name)
        path = write(tmp_path / f"{name}.gguf", tensors, kind)
        checkpoint = open_checkpoint(path, name)
        assert set(checkpoint) == set(tensors)
        changed = 0
        for key, tensor in tensors.items():
            assert checkpoint.shape(key) == tuple(tensor.shape)
            error = relative(checkpoint.read(key, torch.float32), tensor)
            assert error <= allowed
            changed += error > 1e-4
        assert changed >= 4
        found = recognize(open_checkpoint(path, raw=True))
        assert found.kind == name
        assert found.quantization.startswith("GGUF: ")
        assert kind.name in found.quantization
        assert f"GGUF: {kind.name}" in describe(path)
    load_dit(tmp_path / "network.gguf")
    load_text_encoder(tmp_path / "text_encoder.gguf", config={"head_dim": 16})


@pytest.mark.parametrize("kind", [Type.Q6_K, Type.Q4_K, Type.Q3_K, Type.Q8_0, Type.IQ4_NL])
def test_decoding_by_pieces_equals_decoding_at_once(kind, tmp_path):
    rows, width = 3000, 512
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 60, (rows, width // block * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "t5gemma")
    writer.add_tensor("a", data, raw_dtype=kind)
    checkpoint = open_checkpoint(finished(writer, tmp_path / "x.gguf"))
    expected = torch.from_numpy(quants.dequantize(data, kind))
    assert checkpoint.shape("a") == (rows, width)
    assert torch.equal(checkpoint.read("a", torch.float32), expected)
    assert torch.equal(checkpoint.read("a", torch.float32, rows=(1234, 2900)), expected[1234:2900])
    assert torch.equal(checkpoint["a"], expected.bfloat16())


def test_a_stored_shape_is_restored(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "t5gemma")
    writer.add_array("comfy.gguf.orig_shape.a", [6, 4, 8])
    values = torch.randn(3, 64)
    writer.add_tensor("a", quants.quantize(values.numpy(), Type.Q8_0), raw_dtype=Type.Q8_0)
    checkpoint = open_checkpoint(finished(writer, tmp_path / "x.gguf"))
    assert checkpoint.shape("a") == (6, 4, 8)
    assert (checkpoint["a"].float() - values.view(6, 4, 8)).abs().max() < 0.05
    assert torch.equal(checkpoint.read("a", rows=(1, 3)), checkpoint["a"][1:3])


def test_pieces_of_a_tensor_stored_under_another_shape_decode_no_more_than_themselves(tmp_path, monkeypatch):
    """SwiGLU7's inner width is no multiple of 256: such a matrix is stored as rows of blocks, or as one long row."""
    height, width, decoded = 96, 1364, []
    monkeypatch.setattr("magihuman_core.checkpoint.lazy_tensor.PIECE", 4096)
    decode = quants.dequantize

    def counted(data, kind):
        decoded.append(data.size // 34 * 32)
        return decode(data, kind)

    monkeypatch.setattr(quants, "dequantize", counted)
    values = torch.randn(height, width).numpy()
    for shape in ((-1, 32), (-1,)):
        writer = gguf.GGUFWriter(tmp_path / "x.gguf", "t5gemma")
        writer.add_array("comfy.gguf.orig_shape.a", [height, width])
        data = quants.quantize(values.reshape(shape), Type.Q8_0)
        writer.add_tensor("a", data, raw_dtype=Type.Q8_0)
        entry = open_checkpoint(finished(writer, tmp_path / "x.gguf")).entries["a"]
        whole = entry.read(torch.float32)
        assert torch.equal(whole, torch.from_numpy(decode(data, Type.Q8_0)).view(height, width))
        decoded.clear()
        pieces = [entry.read(torch.float32, rows) for rows in row_ranges(height, width)]
        assert len(pieces) == 32
        assert torch.equal(torch.cat(pieces), whole)
        assert sum(decoded) <= height * width + 32 * 2 * len(pieces)


def test_a_gguf_file_is_converted(official, tmp_path):
    path = convert(write(tmp_path / "distill.gguf", official, Type.Q8_0), tmp_path / "x.safetensors")
    stored = load_file(path)
    assert set(stored) == set(official)
    assert recognize(open_checkpoint(path)).role == "distilled"


def test_names_of_llama_cpp_are_explained(tmp_path):
    path = write(tmp_path / "x.gguf", {"enc.blk.0.attn_q.weight": torch.zeros(2, 2)})
    assert "under llama.cpp's names" in describe(path)


def test_without_the_package_the_remedy_is_named(official, tmp_path, monkeypatch):
    path = write(tmp_path / "net.gguf", official, Type.Q8_0)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    checkpoint = open_checkpoint(path)
    assert checkpoint["adapter.rope.bands"].shape == (4,)
    with pytest.raises(CheckpointError, match=r"Q8_0 weights need the Python package gguf.*pip install gguf"):
        checkpoint["block.layers.1.attention.linear_proj.weight"]


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def head(tensors: int, values: int, version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, values)


DAMAGED = {
    "version": head(0, 0, version=99),
    "only magic": b"GGUF",
    "absurd tensor count": head(2**60, 0),
    "absurd value count": head(0, 2**60),
    "cut in its values": head(0, 5) + text(b"a"),
    "absurd string": head(0, 1) + struct.pack("<Q", 2**62),
    "absurd list": head(0, 1) + text(b"a") + struct.pack("<IIQ", 9, 4, 2**61),
    "absurd list of strings": head(0, 1) + text(b"a") + struct.pack("<IIQ", 9, 8, 2**61),
    "deep lists": head(0, 1) + text(b"a") + struct.pack("<I", 9)
    + struct.pack("<IQ", 9, 1) * 2000,
    "unknown value": head(0, 1) + text(b"a") + struct.pack("<I", 77) + bytes(20),
    "alignment 0": head(0, 1) + text(b"general.alignment") + struct.pack("<II", 4, 0),
    "many dimensions": head(1, 0) + text(b"a") + struct.pack("<I", 2**31) + bytes(100),
    "unknown type": head(1, 0) + text(b"a") + struct.pack("<IQIQ", 1, 4, 99, 0) + bytes(100),
    "behind the end": head(1, 0) + text(b"a") + struct.pack("<IQIQ", 1, 4, 0, 2**62) + bytes(100),
    "too large": head(1, 0) + text(b"a") + struct.pack("<IQQIQ", 2, 2**62, 2**62, 0, 0) + bytes(100),
    "half a block": head(1, 0) + text(b"a") + struct.pack("<IQIQ", 1, 31, 8, 0) + bytes(100),
    "twice": head(2, 0)
    + (text(b"a") + struct.pack("<IQIQ", 1, 1, 0, 0)) * 2 + bytes(100),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_named(case, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(DAMAGED[case])
    with pytest.raises(CheckpointError, match=r"x\.gguf: is damaged or cut off: .*Download it again"):
        open_checkpoint(path)


def test_formats_that_are_sound_but_not_read_are_not_called_damaged(tmp_path):
    path = tmp_path / "x.gguf"
    for kind in (5, 15, 41, 50):
        path.write_bytes(head(1, 0) + text(b"a") + struct.pack("<IQIQ", 1, 256, kind, 0) + bytes(1000))
        with pytest.raises(CheckpointError, match=rf"x\.gguf: stores 'a' in GGUF's format {kind}, .*Choose a file"):
            open_checkpoint(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 4, 0, 0))
    with pytest.raises(CheckpointError, match=r"is a GGUF file of version 4; 2 and 3"):
        open_checkpoint(path)


@pytest.mark.parametrize("kind", [kind for kind in (34, 35, 39, 40) if kind in set(Type)])
def test_formats_that_came_later_are_read_where_the_package_knows_them(kind, tmp_path, monkeypatch):
    block, size = gguf.GGML_QUANT_SIZES[Type(kind)]
    data = np.random.default_rng(0).integers(0, 60, (4, 512 // block * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "t5gemma")
    writer.add_tensor("a", data, raw_dtype=Type(kind))
    checkpoint = open_checkpoint(finished(writer, tmp_path / "x.gguf"))
    assert checkpoint.metadata["types"] == Type(kind).name
    assert torch.equal(checkpoint.read("a", torch.float32), torch.from_numpy(quants.dequantize(data, Type(kind))))
    monkeypatch.setattr(quants, "_type_traits", {})  # as in an older one
    with pytest.raises(CheckpointError, match=rf"its {Type(kind).name} weights need a newer version .*-U gguf"):
        checkpoint.read("a")


def test_parts_of_a_cut_file_are_named(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(head(0, 1) + text(b"split.count") + struct.pack("<IH", 2, 3))
    with pytest.raises(CheckpointError, match="cut into 3"):
        open_checkpoint(path)


@settings(max_examples=150, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(place=st.integers(0, 2000), value=st.integers(0, 255), length=st.integers(0, 4000))
def test_any_change_gives_a_checkpoint_or_an_error(place, value, length, tmp_path):
    path = tmp_path / "x.gguf"
    if not path.exists():
        tensors = {"a.weight": torch.randn(4, 32), "b": torch.zeros(3), "c.weight": torch.zeros(2, 64)}
        (tmp_path / "good").write_bytes(write(path, tensors, Type.Q8_0).read_bytes())
    content = bytearray((tmp_path / "good").read_bytes())
    content[place % len(content)] = value
    path.write_bytes(content[: max(4, len(content) - length // 2)] if length % 2 else content)
    with contextlib.suppress(CheckpointError), np.errstate(all="ignore"):
        checkpoint = open_checkpoint(path)
        for key in checkpoint:
            assert tuple(checkpoint[key].shape) == checkpoint.shape(key)
