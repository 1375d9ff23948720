"""A MODEL whose weights are kept in fewer bits: formats, files that are stored so, padding."""

from dataclasses import replace

import comfy.model_management
import comfy.sd
import pytest
import torch
from magihuman_pack.magihuman_core import load_dit
from magihuman_pack.magihuman_core.model.dit import MagiHumanDiT
from magihuman_pack.magihuman_core.weights.dit_keys import network_config, official_state_dict
from magihuman_pack.magihuman_core.weights.open import open_checkpoint
from magihuman_pack.nodes.adapter.load_model import load_model
from small_clip import random, relative_error, sample, with_lora

DOWN_PROJ = "block.layers.2.mlp.down_proj"
BF16, FP8, FP8_E5M2 = torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2


def down_proj(model):
    return model.model.diffusion_model.blocks[2].experts["shared"].mlp.down_proj.weight


def is_quantized(weight) -> bool:
    return type(weight).__name__ == "QuantizedTensor"


@pytest.mark.parametrize(("dtype", "quantize", "fast", "tolerance", "share"), [
    (BF16, None, False, 0.01, 1.01),
    (FP8, None, False, 0.05, 0.6),
    # Here `fast` only changes how weights are laid out: ComfyUI multiplies in fp8 and NVFP4 on cards alone.
    (None, "float8_e4m3fn", True, 0.1, 0.6),
    (FP8_E5M2, None, False, 0.1, 0.6),
    (None, "int8_tensorwise", False, 0.02, 0.6),
    (None, "nvfp4", False, 0.3, 0.45),
    (None, "nvfp4", True, 0.3, 0.45),
])  # fmt: skip
def test_fewer_bits_take_less_memory_stay_close_and_take_lora(distilled, official, plain, dtype, quantize, fast,
                                                              tolerance, share):
    model = load_model(distilled, "distilled", dtype, quantize, fast)
    network = model.model.diffusion_model
    assert down_proj(model).dtype == dtype or dtype != BF16
    assert network.adapter.video_embedder.weight.dtype == network.final_linear_video.weight.dtype == torch.float32
    got = sample(model)
    assert relative_error(got, plain) < tolerance
    assert comfy.model_management.module_size(model.model) < share * sum(t.nbytes for t in official.values())
    rows, columns = official[DOWN_PROJ + ".weight"].shape
    lora = {f"diffusion_model.{DOWN_PROJ}.lora_A.weight": random(4, columns),
            f"diffusion_model.{DOWN_PROJ}.lora_B.weight": random(rows, 4)}  # fmt: skip
    assert relative_error(sample(with_lora(model, lora)), got) > 1e-3


@pytest.mark.parametrize("quantize", ["float8_e4m3fn", "int8_tensorwise"])
def test_bypass_lora_on_weights_that_are_multiplied_in_fewer_bits(distilled, quantize):
    """Bypass mode sets the layers' own `forward`, and leaves one there when it is taken off again."""
    model = load_model(distilled, "distilled", None, quantize, True)
    before = sample(model)
    name = "blocks.2.experts.shared.attention.linear_proj"  # of no padded width
    rows, columns = model.model.diffusion_model.get_submodule(name).weight.shape
    lora = {f"diffusion_model.{name}.lora_A.weight": random(4, columns),
            f"diffusion_model.{name}.lora_B.weight": random(rows, 4)}
    bypass, _ = comfy.sd.load_bypass_lora_for_models(model, None, lora, 0.7, 0)
    assert relative_error(sample(bypass), sample(with_lora(model, lora))) < 0.1
    assert relative_error(sample(bypass), before) > 0.1
    assert relative_error(sample(model), before) == 0


def test_without_bf16_weights_stay_as_they_are_and_are_computed_in_fp32(official, plain, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda *_, **__: False)
    narrow = {key: tensor.to(BF16) if key.startswith("block.") and tensor.ndim == 2 else tensor
              for key, tensor in official.items()}
    model = load_model(narrow, "distilled")
    assert down_proj(model).dtype == BF16 and model.model.diffusion_model.compute_dtype == torch.float32
    wanted = sample(load_model(narrow, "distilled", torch.float32))
    assert relative_error(sample(model), wanted) < 1e-5


def stored(tensor, kind: str) -> dict:
    """What files hold of one weight: a scale for each row, or one for the tensor."""
    if kind == "int8":
        scale = tensor.abs().amax(1, keepdim=True) / 127
        return {"": (tensor / scale).round().to(torch.int8), "_scale": scale}
    scale = tensor.abs().max() / 448
    return {"": (tensor / scale).to(FP8), ".__fp8_scale": scale}


def file_in(official: dict, kind: str, chosen=lambda key: True) -> dict:
    tensors = {}
    for key, tensor in official.items():
        if key.startswith("block.") and tensor.ndim == 2 and chosen(key):
            tensors |= {key + ending: value for ending, value in stored(tensor.float(), kind).items()}
        else:
            tensors[key] = tensor
    return tensors


@pytest.mark.parametrize(("kind", "rounding", "tolerance"), [("fp8", 2e-3, 0.05), ("int8", 2e-3, 0.03)])
def test_a_file_in_8_bits_is_computed_with_as_it_is(official, plain, kind, rounding, tolerance):
    tensors = file_in(official, kind)
    kept, decoded = load_model(tensors, "distilled"), load_model(tensors, "distilled", torch.float32)
    assert is_quantized(down_proj(kept)) and not is_quantized(down_proj(decoded))
    got = sample(kept)
    assert relative_error(got, sample(decoded)) < rounding
    assert relative_error(got, plain) < tolerance


def test_a_file_in_fp8_for_a_part_keeps_the_rest_as_it_is(official, plain):
    model = load_model(file_in(official, "fp8", lambda key: ".mlp." in key), "distilled")
    attention = model.model.diffusion_model.blocks[2].experts["shared"].attention
    assert is_quantized(down_proj(model)) and not is_quantized(attention.linear_proj.weight.data)
    assert relative_error(sample(model), plain) < 0.05


@pytest.fixture(scope="module")
def odd(distilled) -> dict:
    """Official weights of a network with widths, 52 and 100, that units for fewer bits cannot take."""
    torch.manual_seed(5)
    network = MagiHumanDiT(replace(network_config(open_checkpoint(distilled, "network")), swiglu_width=52,
                                   gelu_width=100))
    for tensor in network.parameters():
        tensor.data.copy_(torch.randn(tensor.shape) * (0.1 if tensor.ndim > 1 else 0.05))
    tensors = {key: tensor.detach() for key, tensor in official_state_dict(network).items()}
    found = load_dit(tensors).config
    assert (found.swiglu_width, found.gelu_width) == (52, 100)
    return tensors


def test_awkward_widths_are_padded_with_zeros_for_fp8_units(odd):
    exact, padded = (load_model(odd, "distilled", None, "float8_e4m3fn", fast) for fast in (False, True))
    assert down_proj(exact).shape[1] == 52 and down_proj(padded).shape[1] == 64
    shapes = [module.weight.shape for module in padded.model.diffusion_model.blocks.modules()
              if is_quantized(getattr(module, "weight", None))]
    assert shapes and all(rows % 16 == columns % 16 == 0 for rows, columns in shapes), shapes
    assert relative_error(sample(padded), sample(exact)) < 1e-5


@pytest.mark.parametrize(("quantize", "fast", "width"), [
    ("int8_tensorwise", False, 52), ("nvfp4", False, 52), ("nvfp4", True, 64),
])
def test_awkward_widths_in_other_formats(odd, quantize, fast, width):
    model = load_model(odd, "distilled", None, quantize, fast)
    assert down_proj(model).shape[1] == width
    assert relative_error(sample(model), sample(load_model(odd, "distilled", torch.float32))) < 0.4


def test_lora_files_of_the_real_widths_fit_padded_weights(odd):
    lora = {}

    def add(key: str, rows: int, columns: int):
        lora[f"diffusion_model.{key}.lora_A.weight"] = random(4, columns) * 0.3
        lora[f"diffusion_model.{key}.lora_B.weight"] = random(rows, 4) * 0.3

    for name in ("mlp.up_gate_proj", "mlp.down_proj"):
        for layer in (0, 2):
            add(f"block.layers.{layer}.{name}", *odd[f"block.layers.{layer}.{name}.weight"].shape)
        rows, columns = odd[f"block.layers.1.{name}.weight"].shape  # of three experts; under our own names, too
        add(f"blocks.1.experts.video.{name}", rows // 3, columns)
    exact, padded = (load_model(odd, "distilled", None, "float8_e4m3fn", fast) for fast in (False, True))
    changed = [sample(with_lora(model, lora)) for model in (exact, padded)]
    # ComfyUI rounds a changed weight to fp8 again, by chance up or down.
    effect, difference = relative_error(changed[0], sample(exact)), relative_error(changed[1], changed[0])
    assert difference < 0.1
    assert effect > 5 * difference
