"""LoRA and other patches through ComfyUI's loaders, against official weights that are changed by hand."""

import comfy.hooks
import comfy.lora
import comfy.model_patcher
import comfy.sd
import pytest
import torch
from magihuman_pack.magihuman_core import load_dit
from magihuman_pack.magihuman_core.tools.convert import convert
from magihuman_pack.magihuman_core.weights.fused import fused_parts
from magihuman_pack.nodes.adapter.load_model import load_model
from magihuman_pack.nodes.adapter.lora import PREFIX
from magihuman_pack.nodes.adapter.patcher import is_dynamic
from safetensors.torch import load_file, save_file
from small_clip import generator, max_error, random, sample, sample_by_core, with_lora

QKV = "block.layers.0.attention.linear_qkv"
PROJ = "block.layers.2.attention.linear_proj"


@pytest.fixture
def expected(model, official):
    """expected({official key: difference}) -> the clip of a network with those weights, in the core's loop."""

    def run(change: dict):
        tensors = {key: tensor + change[key] if key in change else tensor for key, tensor in official.items()}
        return sample_by_core(load_dit(tensors, dtype=torch.float32), model.model.latent_format)

    return run


@pytest.fixture
def every_layer(model, official):
    """(LoRA, {official key: its difference at strength 0.7}) of all stacked and shared layers, with both spellings."""
    lora, change = {}, {}
    keys = [key for key in fused_parts(model.model.diffusion_model.config)
            if key.startswith("block.") and "norm" not in key]
    for number, key in enumerate(keys):
        rows, columns = official[key].shape
        up, down = random(rows, 4), random(4, columns)
        name, scale = key.removesuffix(".weight"), 1.0
        if number % 2:
            lora |= {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
        else:
            name, scale = "lora_unet_" + name.replace(".", "_"), 2.0 / 4
            lora |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
        change[key] = 0.7 * scale * up @ down
    return lora, change


def test_official_names_equal_weights_merged_by_hand(model, plain, every_layer, expected, caplog):
    lora, change = every_layer
    got = sample(with_lora(model, lora))
    assert "lora key not loaded" not in caplog.text and "NOT LOADED" not in caplog.text
    assert max_error(got, expected(change)) <= 2e-3
    assert max_error(got, plain) > 1e-2
    assert max_error(sample(model), plain) == 0, "the model itself must be unchanged after the LoRA"


def test_split_names_equal_weights_merged_by_hand(model, plain, expected):
    """Names of split checkpoints, each part with a down matrix of its own; joined here in the official order."""
    config = model.model.diffusion_model.config
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    lora, change = {}, {}
    for layer in (0, min(set(range(config.layers)) - set(config.sandwich_layers))):
        name = f"block.layers.{layer}.attention.linear_"
        rows = []
        for modality in ("_video", "_audio", "_text") if layer in config.sandwich_layers else ("",):
            for part, height in (("q", queries), ("k", keys), ("v", keys), ("g", config.heads)):
                up, down = random(height, 4), random(4, config.hidden)
                full = f"diffusion_model.{name}{part}{modality}"
                lora |= {f"{full}.lora_A.weight": down, f"{full}.lora_B.weight": up}
                rows.append(0.7 * up @ down)
        change[f"{name}qkv.weight"] = torch.cat(rows)
    patched = with_lora(model, lora)
    assert sum(map(len, patched.patches.values())) == 16
    got = sample(patched)
    assert max_error(got, expected(change)) <= 2e-3
    assert max_error(got, plain) > 1e-2


@pytest.mark.parametrize("magnitude", ["none", "by row", "by column"])
def test_a_converted_file_applies_as_one_with_comfyuis_names(model, official, plain, tmp_path, magnitude):
    """Other names, and other spellings of DoRA's magnitudes, become what ComfyUI's loader takes."""
    rows, columns = official[PROJ + ".weight"].shape
    lora = {"lora_A.weight": random(4, columns), "lora_B.weight": random(rows, 4)}
    ours = {f"diffusion_model.{PROJ}.{end}": value for end, value in lora.items()}
    size, end, shape = {"none": (0, "", ()), "by row": (rows, "lora_magnitude_vector", (-1,)),
                        "by column": (columns, "dora_scale", (1, -1))}[magnitude]
    if size:
        scale = torch.rand(size, generator=generator) + 0.5
        lora[end] = scale.reshape(shape)
        ours[f"diffusion_model.{PROJ}.dora_scale"] = scale.reshape((1, -1) if magnitude == "by column" else (-1, 1))
    save_file({f"transformer.{PROJ}.{end}": value for end, value in lora.items()}, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    wanted = sample(with_lora(model, ours))
    assert max_error(wanted, plain) > 1e-3
    assert max_error(sample(with_lora(model, load_file(tmp_path / "out.safetensors"))), wanted) == 0


@pytest.mark.parametrize("kind", ["diff", "lokr"])
def test_another_kind_of_patch_of_a_stacked_weight(model, official, expected, kind):
    rows, columns = official[QKV + ".weight"].shape
    if kind == "diff":
        patch = {"diff": random(rows, columns) * 0.1}
        change = patch["diff"]
    else:
        patch = {"lokr_w1": random(2, 2), "lokr_w2": random(rows // 2, columns // 2)}
        change = torch.kron(*patch.values())
    patched = with_lora(model, {f"diffusion_model.{QKV}.{name}": tensor for name, tensor in patch.items()}, 1.0)
    assert max_error(sample(patched), expected({QKV + ".weight": change})) <= 2e-3


def test_a_patch_that_comfyui_brings_to_the_card_is_still_the_same(model, official):
    """With dynamic VRAM every adapter is made anew from its tensors, before the layer runs."""
    rows, columns = official[QKV + ".weight"].shape
    lora = {f"diffusion_model.{QKV}.lokr_w1": random(2, 2),
            f"diffusion_model.{QKV}.lokr_w2": random(rows // 2, columns // 2)}
    patches = with_lora(model, lora).patches
    assert len(patches) > 1
    for key, [(_, adapter, *_)] in patches.items():
        again = comfy.lora.prefetch_prepared_value(adapter, [0], None, None, False)
        weight = random(*model.model.state_dict()[key if isinstance(key, str) else key[0]].shape)
        made = [one.calculate_weight(weight.clone(), "", 1.0, 1.0, None, lambda x: x) for one in (adapter, again)]
        assert again is not adapter
        assert not torch.equal(made[0], weight)
        assert torch.equal(*made)


@pytest.mark.parametrize("kind", ["DoRA by column", "BOFT", "OFT with blocks across modalities"])
def test_what_needs_all_rows_of_a_stacked_weight_is_left_out_and_said(model, official, plain, caplog, kind):
    rows, columns = official[QKV + ".weight"].shape
    lora = {"DoRA by column": {"lora_A.weight": random(4, columns), "lora_B.weight": random(rows, 4),
                               "dora_scale": random(1, columns).abs()},
            "BOFT": {"oft_blocks": random(1, 2, rows // 2, rows // 2)},
            "OFT with blocks across modalities": {"oft_blocks": random(2, rows // 2, rows // 2)}}[kind]
    patched = with_lora(model, {f"diffusion_model.{QKV}.{name}": tensor for name, tensor in lora.items()}, 1.0)
    assert "cannot be applied to a stacked weight" in caplog.text
    assert max_error(sample(patched), plain) == 0


def test_bypass_mode_with_official_names_says_what_to_use(model, plain, every_layer):
    bypass, _ = comfy.sd.load_bypass_lora_for_models(model, None, every_layer[0], 1.0, 0)
    with pytest.raises(ValueError, match="Load LoRA"):
        sample(bypass)
    assert max_error(sample(model), plain) == 0, "nothing may stay patched after the error"


def test_hook_patches_take_official_names(model, official):
    key = "block.layers.0.mlp.down_proj.weight"
    patch = {PREFIX + key: ("diff", (random(*official[key].shape),))}
    assert model.clone().add_hook_patches(comfy.hooks.WeightHook(), patch) == [PREFIX + key]


def test_a_hooks_lora_changes_no_weights_in_the_file(official, every_layer, tmp_path):
    """ComfyUI's plain patcher writes it into the weights, and the old values back: these may be no views of a file."""
    path = tmp_path / "distill.safetensors"
    save_file({key: tensor.to(torch.bfloat16) for key, tensor in official.items()}, path)
    stored = path.read_bytes()
    model = load_model(path, "distilled", torch.bfloat16)
    before = sample(model)
    patched, _, hooks = comfy.hooks.load_hook_lora_for_models(model, None, every_layer[0], 0.7, 0)
    got = sample(patched, options={"hooks": hooks})
    assert max_error(got, before) > 1e-2
    assert max_error(sample(model), before) == 0, "the weights must be the old ones again"
    assert path.read_bytes() == stored


def test_only_patchers_that_copy_weights_get_views_of_the_file(monkeypatch):
    """Without dynamic memory management, or where it is switched off as for hooks, weights are read."""
    card, cpu = torch.device("cuda"), torch.device("cpu")
    assert not is_dynamic(card)
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic)
    assert is_dynamic(card) and not is_dynamic(card, disable_dynamic=True) and not is_dynamic(cpu)
