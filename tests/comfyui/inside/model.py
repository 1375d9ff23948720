# ruff: noqa: E402
"""The MODEL from within ComfyUI: LoRA, patches, saving, memory. Prints what it checked."""

import sys
import tempfile
from pathlib import Path

from setup_inside import load_pack

FOLDER = Path(sys.argv[1])  # of the small models' networks
load_pack()
import comfy.lora
import comfy.memory_management
import comfy.model_patcher
import comfy.nested_tensor
import comfy.patcher_extension
import comfy.samplers
import comfy.sd
import torch
from magihuman_pack.magihuman_core import flow_sigmas, load_dit
from magihuman_pack.magihuman_core.tools.convert import convert
from magihuman_pack.magihuman_core.weights.fused import fused_parts
from magihuman_pack.magihuman_core.weights.open import open_checkpoint
from magihuman_pack.nodes.adapter import sampling
from magihuman_pack.nodes.adapter.lora import PREFIX, is_alias
from magihuman_pack.nodes.adapter.model import load_model
from safetensors.torch import load_file, save_file
from small_clip import AUDIO, OTHER, TEXT, VIDEO, generator, random, sample

DISTILLED = FOLDER / "distill"


def close(a, b, tolerance):
    return all(float((x - y).abs().max()) <= tolerance for x, y in zip(a, b, strict=True))


model = load_model(DISTILLED, "distilled", torch.float32)
plain = sample(model)
official = dict(open_checkpoint(DISTILLED).items())


def with_lora(lora, strength=0.7, base=None):
    return comfy.sd.load_lora_for_models(base or model, None, lora, strength, 0)[0]


def merged(change):
    """The network's own answer with official weights changed by hand."""
    tensors = dict(official)
    for key, delta in change.items():
        tensors[key] = tensors[key] + delta
    return load_dit(tensors, dtype=torch.float32)


# LoRA: every stacked and shared layer, under both spellings of the names.
lora, change = {}, {}
table = fused_parts(model.model.diffusion_model.config)
for number, key in enumerate(k for k in table if k.startswith("block.") and "norm" not in k):
    rows, columns = official[key].shape
    up, down = random(rows, 4), random(4, columns)
    name = key.removesuffix(".weight")
    if number % 2:
        lora |= {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
        scale = 1.0
    else:
        name = "lora_unet_" + name.replace(".", "_")
        lora |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
        scale = 2.0 / 4
    change[key] = 0.7 * scale * up @ down
patched = with_lora(lora)
video, audio = sample(patched)
dit = merged(change)
want = sampling.sample_unipc  # the core's own loop
from magihuman_pack.magihuman_core import JointDenoiser, pack_latents, unpack_latents

x, shapes = pack_latents(VIDEO, AUDIO)
with torch.no_grad():
    expected = list(unpack_latents(want(JointDenoiser(dit, shapes, TEXT), x, flow_sigmas(2), disable=True), shapes))
expected[0] = model.model.latent_format.process_out(expected[0])
assert close((video, audio), expected, 2e-3)
assert not close((video, audio), plain, 1e-2)
assert close(sample(model), plain, 0), "the model itself is unchanged after the LoRA"
print("LoRA with official names equals weights merged by hand")

# Names of split checkpoints, each part with a down matrix of its own; joined by hand in the official order.
config = model.model.diffusion_model.config
queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
lora_of_parts, change = {}, {}
for layer in (0, min(set(range(config.layers)) - set(config.sandwich_layers))):
    name = f"block.layers.{layer}.attention.linear_"
    rows = []
    for modality in ("_video", "_audio", "_text") if layer in config.sandwich_layers else ("",):
        for part, height in (("q", queries), ("k", keys), ("v", keys), ("g", config.heads)):
            up, down = random(height, 4), random(4, config.hidden)
            full = f"diffusion_model.{name}{part}{modality}"
            lora_of_parts |= {f"{full}.lora_A.weight": down, f"{full}.lora_B.weight": up}
            rows.append(0.7 * up @ down)
    change[f"{name}qkv.weight"] = torch.cat(rows)
split_patched = with_lora(lora_of_parts)
assert sum(map(len, split_patched.patches.values())) == 16
got = sample(split_patched)
with torch.no_grad():
    joined = JointDenoiser(merged(change), shapes, TEXT)
    expected = list(unpack_latents(want(joined, x, flow_sigmas(2), disable=True), shapes))
expected[0] = model.model.latent_format.process_out(expected[0])
assert close(got, expected, 2e-3) and not close(got, plain, 1e-2)
print("LoRA with split names equals weights merged by hand")

# A file with other names becomes, by convert, one that ComfyUI's loader takes: DoRA by row and by column too.
key = "block.layers.2.attention.linear_proj"
rows, columns = official[key + ".weight"].shape
pair = {"lora_A.weight": random(4, columns), "lora_B.weight": random(rows, 4)}
by_row, by_column = (torch.rand(*shape, generator=generator) + 0.5 for shape in ((rows,), (1, columns)))
for name, magnitude in (("plain", {}), ("by row", {"lora_magnitude_vector": by_row}),
                        ("by column", {"dora_scale": by_column})):  # fmt: skip
    own = {f"diffusion_model.{key}.{end}": value for end, value in pair.items()}
    if magnitude:
        own[f"diffusion_model.{key}.dora_scale"] = next(iter(magnitude.values())).reshape(
            (1, -1) if name == "by column" else (-1, 1))
    with tempfile.TemporaryDirectory() as folder:
        other = {f"transformer.{key}.{end}": value for end, value in (pair | magnitude).items()}
        save_file(other, Path(folder) / "in.safetensors")
        convert(Path(folder) / "in.safetensors", Path(folder) / "out.safetensors")
        converted = load_file(Path(folder) / "out.safetensors")
    wanted = sample(with_lora(own))
    assert not close(wanted, plain, 1e-3) and close(sample(with_lora(converted)), wanted, 0), name
print("a converted LoRA applies as one with ComfyUI's names")

# Kinds of patch that are not plain LoRA.
key = "diffusion_model.block.layers.0.attention.linear_qkv"
rows, columns = official["block.layers.0.attention.linear_qkv.weight"].shape
difference = random(rows, columns) * 0.1
diff = with_lora({f"{key}.diff": difference}, 1.0)
expected = merged({"block.layers.0.attention.linear_qkv.weight": difference})
w1, w2 = random(2, 2), random(rows // 2, columns // 2)
lokr = with_lora({f"{key}.lokr_w1": w1, f"{key}.lokr_w2": w2}, 1.0)
kron = merged({"block.layers.0.attention.linear_qkv.weight": torch.kron(w1, w2)})
for name, patched_model, network in (("diff", diff, expected), ("LoKr", lokr, kron)):
    with torch.no_grad():
        loop = JointDenoiser(network, shapes, TEXT)
        wanted = list(unpack_latents(want(loop, x, flow_sigmas(2), disable=True), shapes))
    wanted[0] = model.model.latent_format.process_out(wanted[0])
    assert close(sample(patched_model), wanted, 2e-3), name
print("diff and LoKr patches of a stacked weight apply")
bypass, _ = comfy.sd.load_bypass_lora_for_models(model, None, dict(lora), 1.0, 0)
try:
    sample(bypass)
    raise AssertionError("a bypass LoRA with official names should say that it cannot work")
except ValueError as error:
    assert "Load LoRA" in str(error)
assert close(sample(model), plain, 0), "nothing stays patched after the error"
down_proj = PREFIX + "block.layers.0.mlp.down_proj.weight"
hooked = {down_proj: ("diff", (random(192, 256),))}
assert model.clone().add_hook_patches(comfy.hooks.WeightHook(), hooked) == [down_proj]
print("hook patches take official names; bypass mode says no")

# Block patches, wrappers, attention override.
seen = {"attention": 0, "blocks": [], "calls": 0}
other = model.clone()


def override(function, *args, **kwargs):
    seen["attention"] += 1
    return function(*args, **kwargs)


def block(args, extra):
    seen["blocks"].append(args["transformer_options"]["block_index"])
    before = args["img"].clone()
    out = extra["original_block"](args)
    assert torch.equal(args["img"], before), "a block patch's input must stay as it was"
    return out


def wrapper(executor, *args, **kwargs):
    seen["calls"] += 1
    assert isinstance(args[0], list) and args[0][0].dtype == torch.float32 and args[2].dtype == torch.float32
    return executor(*args, **kwargs)


other.model_options["transformer_options"]["optimized_attention_override"] = override
other.set_model_patch_replace(block, "dit", "double_block", 2)
other.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, wrapper)
assert close(sample(other), plain, 0)
assert seen == {"attention": 2 * 6, "blocks": [2, 2], "calls": 2}, seen
print("block patches, attention overrides and wrappers apply")

# Positive and negative of different length run apart, and equal the core's guidance.
guided = sample(model, negative=OTHER)
with torch.no_grad():
    dit = load_dit(official, dtype=torch.float32)
    loop = JointDenoiser(dit, shapes, TEXT, OTHER)
    wanted = list(unpack_latents(want(loop, x, flow_sigmas(2), disable=True), shapes))
wanted[0] = model.model.latent_format.process_out(wanted[0])
assert close(guided, wanted, 1e-4)
print("guidance with texts of different length equals the core's")

# torch.compile by block, as ComfyUI's node does it.
from comfy_api.torch_helpers import set_torch_compile_wrapper

compiled = model.clone()
set_torch_compile_wrapper(compiled, backend="eager", keys=["diffusion_model.blocks.0", "diffusion_model.blocks.3"])
assert close(sample(compiled), plain, 1e-4)
print("torch.compile of blocks applies")

# With dynamic memory management ComfyUI's layers have no weight until it is loaded.
comfy.memory_management.aimdo_enabled = True
try:
    dynamic = load_model(DISTILLED, "distilled", torch.float32)
finally:
    comfy.memory_management.aimdo_enabled = False
assert close(sample(dynamic), plain, 0)
print("loading with dynamic memory management")

# Merging models and saving walk over all names, the stand-ins too.
patches = model.get_key_patches("diffusion_model.")
half = model.clone()
half.add_patches(patches, 0.5, 0.5)
assert close(sample(half), plain, 1e-4)
saved = model.state_dict_for_saving()
assert saved and not any(is_alias(k.removeprefix("model.")) for k in saved)
print("merging and saving leave the stand-ins out")

# Memory.
small, large = model.memory_required([1, 1, 100_000]), model.memory_required([2, 1, 100_000])
assert large == 2 * small > 0
config = model.model.network_config
tokens = 100_000 // (4 * config.video_channels)
assert small > 4 * config.hidden * tokens  # the fp32 residual stream alone
guider = sampling.make_guider(model, None, [[TEXT, {}]])
guider._shapes = [tuple(VIDEO.shape), tuple(AUDIO.shape)]
found = guider.memory()
assert found.weights == model.model_size() and found.activations > 4 * config.hidden * 18 * 2
assert "96x64" in found.job and "narrower weight_dtype" in found.advice, found
print(found)
assert comfy.model_management.module_size(model.model) < 1.2 * sum(t.nbytes for t in official.values())
copy = model.clone(disable_dynamic=True, force_deepcopy=True)
assert close(sample(copy), plain, 0) and copy.model is not model.model
print("a second copy loads through cached_patcher_init")

# With a model loaded in part, what is no layer of ComfyUI's must still come to the device.
for callback in copy.get_all_callbacks(comfy.patcher_extension.CallbacksMP.ON_LOAD):
    callback(copy, torch.device("meta"), 0, False, False)
for name, module in copy.model.diffusion_model.named_modules():
    layer = hasattr(module, "comfy_cast_weights")
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        assert tensor.is_meta != layer, name
print("norms and bands follow to the device")

import comfyui_version
from magihuman_pack.nodes import require_version

require_version()
comfyui_version.__version__ = "0.32.9"
try:
    require_version()
    raise AssertionError("an older ComfyUI must be refused")
except RuntimeError as error:
    assert "0.33" in str(error) and "0.32.9" in str(error)
print("an older ComfyUI is refused in one line")
