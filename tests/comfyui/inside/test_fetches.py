"""How often ComfyUI's layers bring their weights in: once for each block and forward, however long the clip is."""

from collections import Counter

import comfy.model_management
import comfy.ops
import pytest
import torch
from magihuman_pack.nodes.adapter.load_model import load_model
from small_clip import TEXT, random, relative_error, with_lora

LONG = random(1, 48, 3, 60, 56), random(1, 64, 9)  # 2,520 tokens of video: ten pieces on a CPU
DOWN_PROJ = "block.layers.2.mlp.down_proj"


@pytest.fixture
def fetches(monkeypatch) -> Counter:
    """Layer -> how often its weight was brought in."""
    count: Counter = Counter()
    cast = comfy.ops.cast_bias_weight

    def counted(layer, *args, **kwargs):
        count[id(layer)] += 1
        return cast(layer, *args, **kwargs)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", counted)
    return count


def block_layers(network) -> dict[str, torch.nn.Module]:
    return {name: layer for name, layer in network.blocks.named_modules() if hasattr(layer, "weight_function")}


def forward(model, clip, length=20, text=None):
    network = model.model.diffusion_model
    with torch.inference_mode():
        return network(list(clip), torch.ones(1), random(1, length, 32) if text is None else text)


@pytest.mark.parametrize(("dtype", "quantize", "fast"), [
    (torch.bfloat16, None, False), (torch.float32, None, False), (None, "float8_e4m3fn", False),
    (None, "float8_e4m3fn", True), (None, "int8_tensorwise", False), (None, "nvfp4", False),
])  # fmt: skip
def test_a_long_clip_fetches_each_weight_once(distilled, official, fetches, dtype, quantize, fast):
    model = load_model(distilled, "distilled", dtype, quantize, fast)
    layers = block_layers(model.model.diffusion_model)
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(1, 20, 32, generator=generator)
    with torch.inference_mode():
        network = model.model.diffusion_model
        got = network(list(LONG), torch.ones(1), text)
        assert {name: fetches[id(layer)] for name, layer in layers.items()} == dict.fromkeys(layers, 1)
        network.piece = 1 << 20  # the same in one piece, where nothing is shared
        whole = network(list(LONG), torch.ones(1), text)
    assert relative_error(got, whole) < (1e-5 if dtype == torch.float32 else 0.02)
    assert all(layer._held is None for layer in layers.values())


def test_a_lora_is_applied_once_for_all_pieces(model, official, fetches, monkeypatch):
    rows, columns = official[DOWN_PROJ + ".weight"].shape
    patched = with_lora(model, {f"diffusion_model.{DOWN_PROJ}.lora_A.weight": random(4, columns),
                                f"diffusion_model.{DOWN_PROJ}.lora_B.weight": random(rows, 4)})
    network = patched.model.diffusion_model
    layer = network.blocks[2].experts["shared"].mlp.down_proj
    applied = []
    monkeypatch.setattr(layer, "weight_function", [lambda weight: (applied.append(1), weight + 1)[1]])
    plain = forward(model, LONG, 20)
    assert len(applied) == 1 and torch.isfinite(plain[0]).all()


def test_two_weights_held_at_once_keep_apart_with_one_offload_stream(distilled, monkeypatch):
    """ComfyUI then brings each weight into the same memory (--async-offload 1)."""
    model = load_model(distilled, "distilled", torch.bfloat16)
    wanted = forward(model, LONG, text=TEXT)
    cast, buffer = comfy.ops.cast_bias_weight, torch.empty(1 << 20, dtype=torch.uint8)

    def into_buffer(layer, *args, **kwargs):
        weight, bias, _ = cast(layer, *args, **kwargs)
        place = buffer[: weight.nbytes].view(weight.dtype).view_as(weight)
        return place.copy_(weight), bias, (object(), weight, None)

    monkeypatch.setattr(comfy.model_management, "NUM_STREAMS", 1)
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", into_buffer)
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", lambda *_: None)
    got = forward(model, LONG, text=TEXT)
    assert relative_error(got, wanted) == 0
