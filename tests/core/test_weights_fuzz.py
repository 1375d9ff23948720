"""Whatever a file holds, opening it gives a checkpoint or a CheckpointError, and nothing else."""

import contextlib
import json
import math
import struct

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from magihuman_core.errors import CheckpointError
from magihuman_core.tools.inspect import describe
from magihuman_core.weights.open import open_checkpoint
from magihuman_core.weights.recognize import recognize

from .golden import LOADERS, load_small, safetensors_bytes, small_model

BOUNDED = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

numbers = st.one_of(st.integers(-2, 40), st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64, 1e300, -0.0]))
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
TELLING = ["__metadata__", "a.weight", "a.weight._data", "a.weight._scale", "a.weight_scale", "a.comfy_quant",
           "x.lora_A.weight", "adapter.video_embedder.weight", "block.layers.0.attention.linear_qkv.weight",
           "block.layers.9.attention.linear_q_video.weight", "pretransform.model.encoder.layers.0.weight_v",
           "model.encoder.layers.0.pre_self_attn_layernorm.weight",
           "decoder.upsamples.0.upsamples.0.residual.2.weight",
           "decoder.mid_block.resnets.0.conv1.conv.weight", "decoder.block.0.snake1.alpha",
           "encoder.down_blocks.0.resnets.0.norm1.gamma", "decoder.block.0.conv_t1.bias"]  # fmt: skip
names = st.text(max_size=8) | st.sampled_from(TELLING)
tensors = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I8", "F8_E4M3", "U8", "BOOL", "I64", "F16"]) | anything,
        "shape": st.lists(st.integers(0, 3), max_size=3) | anything,
        "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | anything,
    }
)
headers = st.dictionaries(names, tensors | anything, max_size=6) | anything
SIZES = {"F32": 4, "BF16": 2, "I8": 1, "F8_E4M3": 1, "U8": 1, "I64": 8}
valid_tensors = st.dictionaries(
    names.filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(SIZES)), st.lists(st.integers(0, 3), max_size=3)),
    max_size=8,
)

def assert_opens_or_is_refused(path) -> None:
    """Open, recognize and read all; explain; then load it as each of the parts."""
    with contextlib.suppress(CheckpointError):
        recognize(open_checkpoint(path))
    with contextlib.suppress(CheckpointError):
        describe(path, read_all=True).encode()
    for kind in (None, *LOADERS):
        with contextlib.suppress(CheckpointError):
            for key in (checkpoint := open_checkpoint(path, kind)):
                assert tuple(checkpoint[key].shape) == checkpoint.shape(key)
        with contextlib.suppress(CheckpointError):
            LOADERS[kind or "network"](path)


@BOUNDED
@given(content=st.binary(max_size=200))
@example(content=safetensors_bytes({}, b""))
def test_bytes(content, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert_opens_or_is_refused(path)


@BOUNDED
@given(header=headers, length=st.one_of(st.none(), st.integers(0, 2**64 - 1)), data=st.integers(0, 60))
def test_headers(header, length, data, tmp_path):
    path = tmp_path / "a.safetensors"
    content = safetensors_bytes(header, bytes(data))
    path.write_bytes(content if length is None else struct.pack("<Q", length) + content[8:])
    assert_opens_or_is_refused(path)


@BOUNDED
@given(table=valid_tensors, fill=st.integers(0, 255))
def test_sound_files_with_any_names(table, fill, tmp_path):
    header, end = {}, 0
    for name, (dtype, shape) in table.items():
        size = SIZES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(header, bytes([fill]) * end))
    assert_opens_or_is_refused(path)


SHARDS = ["a.safetensors", "..", "../a.safetensors", "a.safetensors/b"]
shard_names = st.text(max_size=6) | st.sampled_from(SHARDS)
weight_maps = st.dictionaries(names, shard_names, max_size=4) | anything
indexes = st.fixed_dictionaries({"weight_map": weight_maps, "metadata": anything}) | anything


@BOUNDED
@given(index=indexes)
def test_indexes(index, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes({}, b""))
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    assert_opens_or_is_refused(path)
    assert_opens_or_is_refused(tmp_path)


@pytest.mark.parametrize("place", range(0, 60, 7))
def test_a_flipped_byte_in_the_header(place, tmp_path):
    text = json.dumps({"a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "a.safetensors"
    for bit in range(8):
        broken = bytearray(text)
        broken[place] ^= 1 << bit
        path.write_bytes(safetensors_bytes(bytes(broken), bytes(8)))
        assert_opens_or_is_refused(path)


changes = st.one_of(
    st.just("drop"),
    st.text(max_size=4),  # appended to the name
    st.lists(st.integers(0, 4), max_size=5),  # another shape
    st.sampled_from([torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64]),
)


@pytest.mark.parametrize("kind", LOADERS)
@settings(BOUNDED, max_examples=12)
@given(places=st.lists(st.tuples(st.integers(0, 400), changes), max_size=3))
@example(places=[])
def test_sound_models_with_a_few_tensors_changed(kind, places):
    """Without a change they load."""
    tensors = small_model(kind)
    for place, change in places:
        key = sorted(tensors)[place % len(tensors)]
        tensor = tensors.pop(key)
        if isinstance(change, torch.dtype):
            tensors[key] = tensor.to(change)
        elif isinstance(change, list):
            tensors[key] = torch.zeros(change)
        elif change != "drop":
            tensors[key + change] = tensor
    with contextlib.suppress(CheckpointError) if places else contextlib.nullcontext():
        load_small(kind, tensors)
