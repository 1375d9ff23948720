"""Weights that stay in 8 bits: the numbers are those of the decoded weights, the memory is half."""

from pathlib import Path

import pytest
import torch

from magihuman_core import apply_lora, load_dit, load_text_encoder
from magihuman_core.checkpoint.quantize import kept_wide, quantized_layers, stored_dtype
from magihuman_core.errors import CheckpointError, InputError
from magihuman_core.loading.folder import ModelFolder
from magihuman_core.nn.quantized_linear import NarrowLinear, QuantizedLinear, dequantized_rows
from magihuman_core.pipeline.parts import Parts
from magihuman_core.pipeline.request import check_memory_options
from magihuman_core.runtime import devices
from magihuman_core.runtime.devices import KEPT, check_dtype
from magihuman_core.runtime.memory import estimate
from magihuman_core.runtime.streaming import is_streamed, streamer_of
from magihuman_core.tools.convert import convert
from magihuman_core.weights.dit_keys import network_config, split_official
from magihuman_core.weights.open import open_checkpoint
from magihuman_core.weights.precision import may_quantize

from .golden import load_small, outputs, relative, small_model
from .test_weights_layouts import fp8, fp8_split, quanto, split

E4M3, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
# dtype -> a file that has it, and the largest error of a rounded weight against its row's or tensor's largest
FILES = {INT8: quanto, E4M3: fp8_split, E5M2: lambda sd: fp8(sd, "{stem}.weight_scale", E5M2)}
UNSCALED = {E4M3: lambda sd: fp8(sd, None), E5M2: lambda sd: fp8(sd, None, E5M2)}
STEPS = {INT8: 0.5 / 127, E4M3: 2**-4, E5M2: 2**-3}


def fp32(source, dtype, **options):
    """The network with weights in 8 bits that computes in fp32, so that nothing else is rounded."""
    return load_dit(source, dtype=dtype, compute_dtype=torch.float32, **options)


@pytest.mark.parametrize("dtype", FILES)
def test_the_layer_is_that_of_the_decoded_weight(dtype):
    layer = QuantizedLinear(40, 24, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.copy_((torch.randn(24, 40, generator=generator) * 30).to(dtype))
        layer.scale.copy_(torch.rand(24, generator=generator) + 0.01)
    x = torch.randn(3, 5, 40, generator=generator)
    wanted = torch.nn.functional.linear(x, dequantized_rows(layer, slice(None)))
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-4)
    assert layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(("dtype", "write"), [*FILES.items(), *UNSCALED.items()])
def test_a_quantized_file_stays_as_it_is_and_computes_as_decoded(dtype, write, official):
    source = write(official)
    dit = fp32(source, dtype)
    checkpoint = open_checkpoint(source, "network")
    tensors = split_official(checkpoint, dit.config)
    assert stored_dtype(tensors, may_quantize) == dtype
    layers = {name: module for name, module in dit.named_modules() if isinstance(module, QuantizedLinear)}
    assert len(layers) == 4 * (2 * len(dit.config.sandwich_layers) + dit.config.layers)
    for name, layer in layers.items():
        assert layer.weight.dtype == dtype and layer.scale.dtype == torch.float32
        exact = tensors.read(f"{name}.weight", torch.float32)
        assert torch.equal(dequantized_rows(layer, slice(None)), exact)  # not rounded a second time
    plain = load_dit(source, dtype=torch.float32)
    assert relative(outputs(dit), outputs(plain)) < 1e-5
    blocks = sum(p.nbytes for p in dit.blocks.parameters()) / sum(p.nbytes for p in plain.blocks.parameters())
    assert blocks < 0.4  # a quarter of fp32, and norms, gates and scales


@pytest.mark.parametrize("dtype", FILES)
def test_other_files_are_rounded_when_they_are_loaded(dtype, official):
    dit = fp32(official, dtype)
    exact = load_dit(official, dtype=torch.float32)
    for name, layer in dit.named_modules():
        if isinstance(layer, QuantizedLinear):
            weight = exact.get_submodule(name).weight
            most = weight.abs().amax(1, keepdim=True) if dtype == INT8 else weight.abs().max()
            assert bool(((dequantized_rows(layer, slice(None)) - weight).abs() <= most * STEPS[dtype] * 1.001).all())
    assert torch.equal(dit.blocks[0].experts["audio"].attention.linear_gate.weight,
                       exact.blocks[0].experts["audio"].attention.linear_gate.weight)
    assert 1e-4 < relative(outputs(dit), outputs(exact)) < 0.2


def test_a_file_in_another_8_bit_dtype_is_rounded_anew(official):
    assert relative(outputs(fp32(quanto(official), E4M3)), outputs(fp32(quanto(official), INT8))) > 1e-4


def in_part(official, write, wide):
    """A file in 8 bits but for the layers whose names hold one of the words, which are as they were."""
    def chosen(key):
        return any(word in key for word in wide)

    kept = {key: tensor for key, tensor in split(official).items() if chosen(key)}
    return {key: tensor for key, tensor in write(official).items() if not chosen(key)} | kept


@pytest.mark.parametrize("dtype", [INT8, E4M3])
@pytest.mark.parametrize("blocks", [None, 1])
def test_what_a_file_has_in_16_bits_beside_its_8_stays_so(dtype, blocks, official, caplog):
    """A layer that is whole, one that is of the sandwich, and one of which a part is in 16 bits."""
    source = in_part(official, FILES[dtype], ("1.mlp.down", "0.attention.linear_proj", "2.attention.linear_v_audio"))
    wide = {"blocks.1.experts.shared.mlp.down_proj", "blocks.2.experts.audio.attention.linear_qkv",
            *(f"blocks.0.experts.{name}.attention.linear_proj" for name in ("video", "audio", "text"))}
    tensors = open_checkpoint(source, "network")
    tensors = split_official(tensors, network_config(tensors))
    parts = Parts(ModelFolder(Path(), {}, {}), torch.device("meta"))
    assert parts.weights_dtype(tensors, may_quantize) == stored_dtype(tensors, may_quantize) == dtype
    dit = fp32(source, dtype, resident_blocks=blocks, stream_from="file")
    assert {name for name, layer in dit.named_modules() if type(layer) is NarrowLinear} == wide
    assert {layer.weight.dtype for layer in dit.modules() if isinstance(layer, QuantizedLinear)} == {dtype}
    own = sum(tensor.nbytes for tensor in dit.state_dict().values() if not tensor.is_meta)
    own += 0 if blocks is None else streamer_of(dit.blocks).buffer_bytes
    options = {"dtype": dtype, "compute_dtype": torch.float32, "resident_blocks": blocks}
    planned = estimate(dit.config, **options, wide=kept_wide(tensors, dtype, may_quantize))
    assert planned.weights == own > estimate(dit.config, **options).weights
    assert relative(outputs(dit), outputs(load_dit(source, dtype=torch.float32))) < 1e-3  # which are now in bf16
    down = dit.get_submodule("blocks.1.experts.shared.mlp.down_proj").weight
    assert blocks or torch.equal(down, official["block.layers.1.mlp.down_proj.weight"].bfloat16())
    assert "rounded anew" not in caplog.text
    assert load_dit(source, dtype=dtype).get_submodule(min(wide)).weight.dtype == torch.bfloat16


def test_a_file_with_few_layers_in_8_bits_is_one_of_16(official):
    source = in_part(official, quanto, [f"layers.{number}." for number in (1, 2)])
    tensors = open_checkpoint(source, "network")
    tensors = split_official(tensors, network_config(tensors))
    assert stored_dtype(tensors, may_quantize) is None and kept_wide(tensors, INT8, may_quantize) == frozenset()
    dit = load_dit(source, dtype=INT8)  # as wished, and so throughout
    assert not any(type(layer) is NarrowLinear for layer in dit.modules())


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
def test_what_convert_writes_is_what_loading_would_round_to(dtype, official, tmp_path):
    kept = {"fp8": E4M3, "int8": INT8}[dtype]
    path = convert(official, tmp_path / "net.safetensors", dtype=dtype, role="base")
    assert stored_dtype(split_official(open_checkpoint(path, "network"), fp32(path, kept).config), may_quantize) == kept
    assert relative(outputs(fp32(path, kept)), outputs(fp32(official, kept))) < (1e-6 if dtype == "int8" else 0.05)


@pytest.mark.parametrize("dtype", [INT8, E4M3])
@pytest.mark.parametrize("stream_from", ["file", "memory"])
def test_streamed_blocks_are_streamed_in_8_bits_and_bit_equal(dtype, stream_from, official):
    source = FILES[dtype](official)
    whole = load_dit(source, dtype=dtype)
    streamed = load_dit(source, dtype=dtype, resident_blocks=1, stream_from=stream_from)
    assert streamer_of(streamed.blocks) is not None
    matrices = [p.nbytes for key, p in whole.named_parameters() if is_streamed(key, streamer_of(streamed.blocks).plans)]
    assert sum(matrices) <= streamer_of(streamed.blocks).nbytes < sum(matrices) * 1.3 + 256 * len(matrices)
    for _ in range(2):
        assert torch.equal(outputs(streamed), outputs(whole))
    streamer_of(streamed.blocks).close()


@pytest.mark.parametrize("dtype", [INT8, E4M3, torch.bfloat16])
def test_streamed_blocks_compute_in_the_dtype_that_is_asked_for(dtype, official):
    streamed = fp32(official, dtype, resident_blocks=0)
    assert torch.equal(outputs(streamed), outputs(fp32(official, dtype)))
    streamer_of(streamed.blocks).close()


@pytest.mark.parametrize("dtype", [INT8, E4M3])
def test_rounding_while_streaming_is_bit_equal_and_warned_of(dtype, official, caplog):
    whole = outputs(load_dit(official, dtype=dtype))
    for stream_from in ("file", "memory"):
        caplog.clear()
        streamed = load_dit(official, dtype=dtype, resident_blocks=0, stream_from=stream_from)
        assert torch.equal(outputs(streamed), whole)
        assert ("rounded anew at each step" in caplog.text) == (stream_from == "file")
        streamer_of(streamed.blocks).close()


def test_a_lora_beside_quantized_weights(official):
    generator = torch.Generator().manual_seed(3)
    key, rows, width = "block.layers.1.mlp.down_proj", 64, official["block.layers.1.mlp.down_proj.weight"].shape[1]
    lora = {f"{key}.lora_A.weight": torch.randn(4, width, generator=generator) * 0.1,
            f"{key}.lora_B.weight": torch.randn(rows, 4, generator=generator) * 0.1,
            f"{key}.dora_scale": torch.rand(rows, 1, generator=generator) + 0.5}  # fmt: skip
    quantized, plain = fp32(quanto(official), INT8), load_dit(quanto(official), dtype=torch.float32)
    before = outputs(quantized)
    applied = [apply_lora(dit, lora) for dit in (quantized, plain)]
    assert relative(outputs(quantized), outputs(plain)) < 1e-2  # up and down are in bf16 beside 8-bit weights
    assert relative(outputs(quantized), before) > 0.05
    applied[0].remove()
    assert torch.equal(outputs(quantized), before)


@pytest.mark.parametrize("dtype", [INT8, E4M3])
def test_the_text_encoder_in_8_bits(dtype):
    small, plain = (load_small("text_encoder", dtype=each) for each in (dtype, torch.bfloat16))
    layers = [m for m in small.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == 7 * small.config.num_hidden_layers
    assert small.encoder.embed_tokens.weight.dtype == torch.bfloat16
    ids = torch.arange(1, 8)[None]
    with torch.inference_mode():
        assert relative(small(ids), plain(ids)) < 0.15


@pytest.mark.parametrize("streamed", [None, 1])
def test_a_text_encoder_in_8_bits_but_for_a_layer(streamed):
    def stored(key, tensor):
        if not may_quantize("encoder." + key.rpartition("encoder.")[2]) or ".layers.1.mlp.up" in key:
            return {key: tensor}
        scale = tensor.float().abs().amax(1, keepdim=True) / 127
        return {key: (tensor.float() / scale).round().to(torch.int8), f"{key}_scale": scale}

    weights = {name: value for key, tensor in small_model("text_encoder").items()
               for name, value in stored(key, tensor).items()}
    assert sum(tensor.dtype == torch.int8 for tensor in weights.values()) > 10
    kept, exact = (load_small("text_encoder", weights, dtype=dtype, compute_dtype=torch.float32, resident_layers=layers)
                   for dtype, layers in ((INT8, streamed), (torch.bfloat16, None)))
    wide = [name for name, layer in kept.named_modules() if type(layer) is NarrowLinear]
    assert wide == ["encoder.layers.1.mlp.up_proj"]
    ids = torch.arange(1, 8)[None]
    with torch.inference_mode():
        assert relative(kept(ids), exact(ids)) < 0.02  # which is the rounding of the other one to bf16


def test_damage_is_found_in_8_bits_too(official):
    source = fp8_split(official)
    key = next(key for key in source if key.endswith("down_proj.weight"))
    source[key] = source[key].clone()
    source[key].view(torch.uint8)[0, 0] = 0x7F
    with pytest.raises(CheckpointError, match="not numbers"):
        load_dit(source, dtype=E4M3)
    key = "block.layers.1.mlp.down_proj.weight"
    broken = official | {key: official[key] * float("nan")}
    for dtype in (E4M3, INT8):
        with pytest.raises(CheckpointError, match="not numbers"):
            load_dit(broken, dtype=dtype)


def test_nothing_changes_where_no_8_bits_are_asked_for(official):
    tensors = open_checkpoint(official, "network")
    assert quantized_layers(tensors, torch.bfloat16, may_quantize) is tensors
    assert stored_dtype(split_official(tensors, load_dit(official).config), may_quantize) is None


@pytest.mark.parametrize(("dtype", "device", "words"), [
    (E4M3, "mps", "The device mps cannot hold weights in float8_e4m3fn. Choose int8"),
    (torch.int32, "cpu", "dtype is torch.int32, expected .* bfloat16, .* int8"),
    (torch.float8_e4m3fnuz, "cpu", "dtype is torch.float8_e4m3fnuz"), ("fp8", "cpu", "dtype is 'fp8'"),
])  # fmt: skip
def test_a_dtype_that_weights_cannot_have_is_refused_before_they_are_read(dtype, device, words, monkeypatch):
    """There is no MPS here: what it answers is supposed."""
    monkeypatch.setattr(devices, "holds", lambda device, dtype: str(device) == "cpu" or dtype not in (E4M3, E5M2))
    parts = Parts(ModelFolder(Path(), {}, {}), torch.device(device), dtype=dtype)
    for run in (lambda: check_memory_options(parts), lambda: load_dit("none", dtype=dtype, device=device),
                lambda: load_text_encoder("none", dtype=dtype, device=device)):
        with pytest.raises(InputError, match=words):
            run()
    for good in KEPT:
        check_dtype(good, "cpu")


@pytest.mark.parametrize(("device", "kept"), [("meta", E4M3), ("mps", INT8)])
def test_fp8_is_kept_in_int8_on_a_device_that_holds_no_fp8(device, kept, official):
    tensors = open_checkpoint(FILES[E4M3](official), "network")
    tensors = split_official(tensors, network_config(tensors))
    assert Parts(ModelFolder(Path(), {}, {}), torch.device(device)).weights_dtype(tensors, may_quantize) == kept
