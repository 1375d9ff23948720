# ruff: noqa: E402
"""A MODEL whose weights are kept in fewer bits: formats, files that are stored so, padding. Prints what it checked."""

import sys
from dataclasses import replace
from pathlib import Path

from setup_inside import load_pack

FOLDER = Path(sys.argv[1])  # of the small models' networks
load_pack()
import comfy.model_management
import comfy.sd
import torch
from magihuman_pack.magihuman_core import load_dit
from magihuman_pack.magihuman_core.model.dit import MagiHumanDiT
from magihuman_pack.magihuman_core.weights.dit_keys import network_config, official_state_dict
from magihuman_pack.magihuman_core.weights.open import open_checkpoint
from magihuman_pack.nodes.adapter.model import load_model
from small_clip import random, sample

DISTILLED = FOLDER / "distill"


def distance(got, wanted):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(got, wanted, strict=True))


def down_proj(model):
    return model.model.diffusion_model.blocks[2].experts["shared"].mlp.down_proj.weight


official = dict(open_checkpoint(DISTILLED).items())
plain = sample(load_model(DISTILLED, "distilled", torch.float32))
size = sum(t.nbytes for t in official.values())
key = "block.layers.2.mlp.down_proj"
rows, columns = official[key + ".weight"].shape
lora = {f"diffusion_model.{key}.lora_A.weight": random(4, columns),
        f"diffusion_model.{key}.lora_B.weight": random(rows, 4)}  # fmt: skip


def with_lora(model):
    return comfy.sd.load_lora_for_models(model, None, lora, 0.7, 0)[0]


for dtype, quantize, fast, tolerance, share in (
    (torch.bfloat16, None, False, 0.01, 1.01),
    (torch.float8_e4m3fn, None, False, 0.05, 0.6),
    # Here `fast` only changes how weights are laid out: ComfyUI multiplies in fp8 and NVFP4 on cards alone.
    (None, "float8_e4m3fn", True, 0.1, 0.6),
    (torch.float8_e5m2, None, False, 0.1, 0.6),
    (None, "int8_tensorwise", False, 0.02, 0.6),
    (None, "nvfp4", False, 0.3, 0.45),
    (None, "nvfp4", True, 0.3, 0.45),
):
    narrow = load_model(DISTILLED, "distilled", dtype, quantize, fast)
    network = narrow.model.diffusion_model
    assert down_proj(narrow).dtype == dtype or dtype != torch.bfloat16
    assert network.adapter.video_embedder.weight.dtype == network.final_linear_video.weight.dtype == torch.float32
    got = sample(narrow)
    assert distance(got, plain) < tolerance, (dtype, quantize, distance(got, plain))
    assert distance(sample(with_lora(narrow)), got) > 1e-3
    found = comfy.model_management.module_size(narrow.model) / size
    assert found < share, (quantize, found)
    print(f"{quantize or dtype}{' fast' if fast else ''}: relative error {distance(got, plain):.3f}")


# Files that are stored so are computed with as they are: each tensor with one scale, or a scale for each row.
def stored(tensor, name):
    if name == "int8":
        scale = tensor.abs().amax(1, keepdim=True) / 127
        return {"": (tensor / scale).round().to(torch.int8), "_scale": scale}
    scale = tensor.abs().max() / 448
    return {"": (tensor / scale).to(torch.float8_e4m3fn), ".__fp8_scale": scale}


def file_in(name, chosen=lambda key: True):
    tensors = {}
    for key, tensor in official.items():
        if key.startswith("block.") and tensor.ndim == 2 and chosen(key):
            tensors |= {key + ending: value for ending, value in stored(tensor.float(), name).items()}
        else:
            tensors[key] = tensor
    return tensors


# ComfyUI multiplies int8 weights with inputs that it rounds to int8 as well.
for name, rounding, tolerance in (("fp8", 2e-3, 0.05), ("int8", 0.02, 0.03)):
    tensors = file_in(name)
    kept, decoded = load_model(tensors, "distilled"), load_model(tensors, "distilled", torch.float32)
    assert type(down_proj(kept)).__name__ == "QuantizedTensor", type(down_proj(kept))
    errors = distance(sample(kept), sample(decoded)), distance(sample(kept), plain)
    assert errors[0] < rounding and errors[1] < tolerance, errors
    print(f"a file in {name} is used as it is")

mixed = load_model(file_in("fp8", lambda key: ".mlp." in key), "distilled")
network = mixed.model.diffusion_model
assert type(down_proj(mixed)).__name__ == "QuantizedTensor"
assert type(network.blocks[2].experts["shared"].attention.linear_proj.weight.data).__name__ == "Tensor"
assert distance(sample(mixed), plain) < 0.05
print("a file in fp8 for a part keeps the rest as it is")

# A width that fp8 units cannot take is padded with zeros where they are used; official LoRA files still fit.
config = replace(network_config(open_checkpoint(DISTILLED, "network")), swiglu_width=52, gelu_width=100)
torch.manual_seed(5)
odd = MagiHumanDiT(config)
for tensor in odd.parameters():
    tensor.data.copy_(torch.randn(tensor.shape) * (0.1 if tensor.ndim > 1 else 0.05))
odd = {key: tensor.detach() for key, tensor in official_state_dict(odd).items()}
exact, padded = (load_model(odd, "distilled", None, "float8_e4m3fn", fast) for fast in (False, True))
assert down_proj(exact).shape[1] == 52 and down_proj(padded).shape[1] == 64
for module in padded.model.diffusion_model.blocks.modules():
    weight = getattr(module, "weight", None)
    if type(weight).__name__ == "QuantizedTensor":
        assert weight.shape[0] % 16 == weight.shape[1] % 16 == 0, weight.shape
assert distance(sample(padded), sample(exact)) < 1e-5
for quantize, fast in (("int8_tensorwise", False), ("nvfp4", False), ("nvfp4", True)):
    other = load_model(odd, "distilled", None, quantize, fast)
    assert down_proj(other).shape[1] == (52 if (quantize, fast) == ("nvfp4", False) else 64)
    assert distance(sample(other), sample(load_model(odd, "distilled", torch.float32))) < 0.4
lora = {}
for layer in (0, 2):
    for name in ("mlp.up_gate_proj", "mlp.down_proj"):
        rows, columns = odd[f"block.layers.{layer}.{name}.weight"].shape
        lora |= {f"diffusion_model.block.layers.{layer}.{name}.lora_A.weight": random(4, columns) * 0.3,
                 f"diffusion_model.block.layers.{layer}.{name}.lora_B.weight": random(rows, 4) * 0.3}  # fmt: skip
for name in ("up_gate_proj", "down_proj"):  # under our own names, too
    rows, columns = odd[f"block.layers.1.mlp.{name}.weight"].shape
    expert = "shared" if 1 not in config.sandwich_layers else "video"
    rows //= 1 if expert == "shared" else 3
    lora |= {f"diffusion_model.blocks.1.experts.{expert}.mlp.{name}.lora_A.weight": random(4, columns) * 0.3,
             f"diffusion_model.blocks.1.experts.{expert}.mlp.{name}.lora_B.weight": random(rows, 4) * 0.3}  # fmt: skip
changed = [sample(with_lora(model)) for model in (exact, padded)]
# ComfyUI rounds a changed weight to fp8 again, by chance up or down.
effect, difference = distance(changed[0], sample(exact)), distance(changed[1], changed[0])
assert difference < 0.1 and effect > 5 * difference, (effect, difference)
with torch.no_grad():
    assert load_dit(odd).config.swiglu_width == 52
print("awkward widths are padded for fp8 units, and LoRA files of the real widths apply")
