"""LoRA against networks into whose official weights the same change was merged by hand."""

import json
import logging
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from magihuman_core import CheckpointError, InputError, load_dit
from magihuman_core.model.config import RELEASED
from magihuman_core.runtime import lora as lora_module
from magihuman_core.runtime.lora import BiasHook, LinearHook, apply_lora, split_lora
from magihuman_core.tools.convert import convert
from magihuman_core.tools.inspect import describe
from magihuman_core.weights.lora_names import lora_targets
from magihuman_core.weights.open import open_checkpoint

from .golden import outputs, random_clip, recorded_network, relative
from .test_weights_layouts import split

RANK = 4
# A stacked layer of the sandwich, and shared ones, of every kind.
LAYERS = [
    "block.layers.0.attention.linear_qkv", "block.layers.0.attention.linear_proj", "block.layers.1.mlp.up_gate_proj",
    "block.layers.2.attention.linear_qkv", "block.layers.3.mlp.down_proj", "block.layers.5.mlp.down_proj",
]  # fmt: skip
PREFIXES = ("", "diffusion_model.", "transformer.", "model.", "base_model.model.")


@pytest.fixture(scope="module")
def weights():
    return {key: value.float() for key, value in recorded_network().items()}


@pytest.fixture(scope="module")
def config(weights):
    return load_dit(weights, dtype=torch.float32).config


@pytest.fixture(scope="module")
def clip(config):
    return random_clip(config)


def pairs(weights, layers=LAYERS, seed=1):
    """layer -> (up, down), whose product is a tenth as large as the weight."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name in layers:
        rows, width = weights[name + ".weight"].shape
        up = torch.randn(rows, RANK, generator=generator)
        down = torch.randn(RANK, width, generator=generator)
        size = weights[name + ".weight"].norm() / (up @ down).norm()
        out[name] = up * size * 0.1, down
    return out


def fused(pairs, ends=("lora_B.weight", "lora_A.weight"), prefix=""):
    return {f"{prefix}{name}.{end}": tensor.contiguous()
            for name, pair in pairs.items() for end, tensor in zip(ends, pair, strict=True)}


def merged(weights, changes):
    return weights | {name + ".weight": weights[name + ".weight"] + change for name, change in changes.items()}


def products(pairs, scale=1.0):
    return {name: scale * (up @ down) for name, (up, down) in pairs.items()}


def assert_equals_merge(dit, clip, merged_weights, bound=1e-5):
    target = load_dit(merged_weights, dtype=torch.float32)
    assert relative(outputs(dit, clip), outputs(target, clip)) < bound


def assert_file_equals_merge(file, weights, clip, merged_weights, strength=1.0):
    dit = load_dit(weights, dtype=torch.float32)
    assert not apply_lora(dit, file, strength).unmatched
    assert_equals_merge(dit, clip, merged_weights)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("ends", [("lora_B.weight", "lora_A.weight"), ("lora_up.weight", "lora_down.weight"),
                                  ("lora_B.default.weight", "lora_A.default.weight")])  # fmt: skip
def test_fused_names_equal_a_merge(prefix, ends, weights, clip):
    lora = pairs(weights)
    changed = merged(weights, products(lora))
    assert_file_equals_merge(fused(lora, ends, prefix), weights, clip, changed)
    plain, target = (outputs(load_dit(each, dtype=torch.float32), clip) for each in (weights, changed))
    assert relative(target, plain) > 1e-2  # it does something


def test_split_names_with_their_own_down_matrices_equal_a_merge(weights, clip, config):
    generator = torch.Generator().manual_seed(2)
    lora, changes = {}, {}
    for name, (up, down) in pairs(weights).items():
        whole = []
        parts = split({f"{name}.weight": up}, config.heads, config.kv_heads, config.head_dim, config.sandwich_layers)
        for part, rows in parts.items():
            part = part.removesuffix(".weight")
            own = down + torch.randn(down.shape, generator=generator)
            lora |= {f"{part}.lora_up.weight": rows, f"{part}.lora_down.weight": own}
            whole.append(rows @ own)
        changes[name] = torch.cat(whole)
    assert "block.layers.0.attention.linear_g_text.lora_up.weight" in lora
    assert "block.layers.2.attention.linear_q.lora_up.weight" in lora
    assert "block.layers.5.mlp.down_proj_audio.lora_up.weight" in lora
    assert_file_equals_merge(lora, weights, clip, merged(weights, changes))


def test_kohya_and_own_names(weights, clip, config):
    lora = pairs(weights, LAYERS[3:4])
    (up, down), gate = lora[LAYERS[3]], config.heads
    flat = {f"lora_unet_{name.replace('.', '_')}": pair for name, pair in lora.items()}
    own = {"blocks.2.experts.shared.attention.linear_qkv": (up[:-gate], down),
           "blocks.2.experts.shared.attention.linear_gate": (up[-gate:], down)}
    for file in (fused(flat, ("lora_up.weight", "lora_down.weight")), fused(own)):
        assert_file_equals_merge(file, weights, clip, merged(weights, products(lora)))


def test_every_layer_of_the_network_can_be_changed(weights, clip):
    names = [key.removesuffix(".weight") for key, value in weights.items() if value.dim() == 2]
    assert len(names) == 4 * 6 + 5
    lora = pairs(weights, names)
    assert_file_equals_merge(fused(lora), weights, clip, merged(weights, products(lora)))


@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0])
def test_alpha_and_strength(strength, weights, clip):
    lora = pairs(weights)
    file = fused(lora) | {f"{name}.alpha": torch.tensor(2.0) for name in lora}
    expected = merged(weights, products(lora, strength * 2.0 / RANK))
    assert_file_equals_merge(file, weights, clip, expected, strength)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("column", [True, False])
def test_dora(column, strength, weights, clip, monkeypatch):
    monkeypatch.setattr(lora_module, "PIECE", 1500)  # some rows and some tokens at a time
    lora = pairs(weights)
    generator = torch.Generator().manual_seed(3)
    file, changes = fused(lora), {}
    for name, (up, down) in lora.items():
        weight = weights[name + ".weight"]
        changed = weight + up @ down
        magnitude = weight.norm(dim=1, keepdim=True) * (1 + 0.2 * torch.rand(len(weight), 1, generator=generator))
        file[f"{name}.dora_scale"] = magnitude if column else magnitude[:, 0].contiguous()
        changes[name] = strength * (magnitude * changed / changed.norm(dim=1, keepdim=True) - weight)
    assert_file_equals_merge(file, weights, clip, merged(weights, changes), strength)


def test_plain_differences_of_weights_norms_and_biases(weights, clip):
    generator = torch.Generator().manual_seed(4)
    keys = [f"{LAYERS[0]}.weight", "block.layers.1.attention.pre_norm.weight", "block.layers.2.attention.q_norm.weight",
            "final_norm_audio.weight", "adapter.text_embedder.bias"]  # fmt: skip
    changes = {key: 0.1 * torch.randn(weights[key].shape, generator=generator) for key in keys}
    file = {key.replace(".weight", ".diff").replace(".bias", ".diff_b"): change for key, change in changes.items()}
    expected = weights | {key: weights[key] + 2 * change for key, change in changes.items()}
    assert_file_equals_merge(file, weights, clip, expected, 2.0)


def test_taking_them_out_in_any_order_leaves_every_bit(weights, clip):
    dit = load_dit(weights, dtype=torch.bfloat16)
    before, plain = {k: v.clone() for k, v in dit.state_dict().items()}, outputs(dit, clip)
    first, second = (apply_lora(dit, fused(pairs(weights, seed=seed))) for seed in (1, 2))
    both = outputs(dit, clip)
    first.remove()
    only_second = outputs(dit, clip)
    second.remove()
    second.remove()  # twice does no harm
    assert torch.equal(outputs(dit, clip), plain)
    assert all(torch.equal(value, before[key]) for key, value in dit.state_dict().items())
    apply_lora(dit, fused(pairs(weights, seed=2)))
    assert torch.equal(outputs(dit, clip), only_second) and not torch.equal(both, only_second)


def test_its_tensors_go_where_the_network_goes(weights):
    """So that a network that waits in main memory leaves nothing on the card. Names in a state dict stay."""
    dit = load_dit(weights, dtype=torch.float32)
    names, modules = list(dit.state_dict()), [name for name, _ in dit.named_modules()]
    own = {id(tensor) for tensor in (*dit.parameters(), *dit.buffers())}
    lora, bias = pairs(weights), "adapter.video_embedder"
    file = fused(lora) | {f"{name}.dora_scale": up.norm(dim=1) for name, (up, _) in lora.items()}
    file |= {f"{bias}.diff_b": torch.ones_like(weights[f"{bias}.bias"])}
    applied = [apply_lora(dit, each) for each in (file, fused(lora))]
    outputs(dit)  # now the factors of DoRA are there, too
    changes = [tensor for tensor in dit.buffers() if id(tensor) not in own]
    assert sum(tensor.nbytes for tensor in changes) >= 2 * sum(tensor.nbytes for tensor in fused(lora).values())
    dit.to("meta")
    assert {tensor.device.type for hook in dit.modules() if isinstance(hook, LinearHook | BiasHook)
            for tensor in hook.buffers()} == {"meta"}
    assert {tensor.device.type for tensor in (*dit.parameters(), *dit.buffers())} == {"meta"}
    assert list(dit.state_dict()) == names
    for each in applied:
        each.remove()
    assert [name for name, _ in dit.named_modules()] == modules
    assert not any(module._forward_hooks for module in dit.modules())


def test_bf16_is_near_the_exact_network(weights, clip):
    lora = pairs(weights)
    dit = load_dit(weights, dtype=torch.bfloat16)
    apply_lora(dit, fused(lora))
    assert_equals_merge(dit, clip, merged(weights, products(lora)), 3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_blocks_give_the_same_bits(dtype, weights, clip, tmp_path):
    save_file(weights, tmp_path / "network.safetensors")
    file = fused(pairs(weights))
    file |= {f"{name}.dora_scale": weights[name + ".weight"].norm(dim=1) for name in LAYERS[:2]}
    resident = load_dit(weights, dtype=dtype)
    streamed = load_dit(tmp_path / "network.safetensors", dtype=dtype, resident_blocks=2)
    plain = outputs(streamed, clip)
    apply_lora(resident, file)
    applied = apply_lora(streamed, file)
    for _ in range(2):
        assert torch.equal(outputs(streamed, clip), outputs(resident, clip))
    applied.remove()
    assert torch.equal(outputs(streamed, clip), plain)


@pytest.mark.parametrize("magnitude", [False, True])
def test_gradients_flow_through(magnitude, weights, clip):
    dit, lora = load_dit(weights, dtype=torch.float32), pairs(weights)
    apply_lora(dit, fused(lora) | {f"{name}.dora_scale": up.norm(dim=1) for name, (up, _) in lora.items() if magnitude})
    video = clip[0].clone().requires_grad_()
    dit(video, *clip[1:])[0].square().sum().backward()
    assert video.grad.abs().sum() > 0


def test_what_fits_nothing_is_listed_with_the_reason_and_changes_nothing(weights, clip, caplog):
    name = LAYERS[0]
    up, down = pairs(weights)[name]
    proj = "block.layers.0.attention.linear_proj"
    left = {  # key: (tensor, words of the reason)
        "block.layers.99.mlp.down_proj.lora_A.weight": (down, "no such layer"),
        "block.layers.1.mlp.down_proj.lora_A.weight": (down, "the other one of up and down is missing"),
        "block.layers.2.mlp.down_proj.lora_mid.weight": (down, "not a kind of tensor that is known"),
        "block.layers.3.mlp.down_proj.diff_b": (down[0].clone(), ""),
        f"{proj}.lora_A.weight": (down, "one magnitude per row"),
        f"{proj}.lora_B.weight": (torch.ones(weights[f"{proj}.weight"].shape[0], RANK), "one magnitude per row"),
        f"{proj}.dora_scale": (torch.ones(1, down.shape[1]), "one magnitude per row"),  # per column
        "block.layers.2.attention.linear_proj.lora_A.weight": (torch.zeros(0, 128), "do not fit"),
        "block.layers.2.attention.linear_proj.lora_B.weight": (torch.zeros(128, 0), "do not fit"),
        "block.layers.3.attention.linear_proj.diff": (torch.tensor(1.0), "shape of its weight"),
        "block.layers.4.attention.linear_proj.alpha": (torch.ones(2), "up and down are missing"),
        f"{name}.alpha": (torch.ones(2), ""),  # not a number: as if it were absent
    }
    dit = load_dit(weights, dtype=torch.float32)
    with caplog.at_level(logging.WARNING):
        applied = apply_lora(dit, fused({name: (up, down)}) | {key: tensor for key, (tensor, _) in left.items()})
    assert set(applied.unmatched) == set(left) and len(applied.matched) == 6
    assert all(reason in applied.unmatched[key] for key, (_, reason) in left.items())
    assert sum(key in caplog.text for key in left) == 10 and "and 2 more" in caplog.text
    assert_equals_merge(dit, clip, merged(weights, {name: up @ down}))


def test_refusals(weights, tmp_path):
    dit = load_dit(weights, dtype=torch.float32)
    name = LAYERS[0]
    up, down = pairs(weights)[name]
    bad = up.clone()
    bad[3, 1] = torch.nan
    for file, words in (
        ({"lora_te_text_model_layer.lora_up.weight": up}, "none of its 1 tensors"),
        (fused({name: (up[:-1], down)}), f"{name}.lora_B.weight.*rows"),
        (fused({name: (up, down[:, 1:].contiguous())}), "made for another model"),
        (fused({name: (bad, down)}), "not numbers"),
        ({f"{name}.diff": torch.ones(up.shape[0], 3)}, "made for another model"),
    ):
        with pytest.raises(CheckpointError, match=words):
            apply_lora(dit, file)
    with pytest.raises(InputError, match="strength"):
        apply_lora(dit, fused({name: (up, down)}), float("nan"))
    for file, words in (({f"{name}.lokr_w1": up}, r"a relative of LoRA \(LoKr\)"), (weights, "is a MagiHuman network")):
        with pytest.raises(CheckpointError, match=words):
            apply_lora(dit, file)
    with pytest.raises(CheckpointError, match="no such file"):
        apply_lora(dit, tmp_path / "absent.safetensors")
    assert not any(module._forward_hooks for module in dit.modules())  # nothing is left half applied


def test_targets_cover_each_row_once(config, weights):
    """Of the official names, and of the split ones with the norms: every row of every weight, exactly once."""
    table = lora_targets(config)
    official = {key.removesuffix(".weight") for key in weights if key.endswith(".weight")}
    split = {name for name in table if name.startswith("block.") and name not in official}
    assert official < set(table) and len(split) == 4 * (4 * 3 + 3 * 3) + 2 * 4
    heights = {key: len(value) for key, value in load_dit(weights).state_dict().items()}
    for names in (official, split):
        rows = {}
        for name in names:
            for target in table[name]:
                rows.setdefault(target.key, []).append((target.place.start, target.place.stop))
        for key, spans in rows.items():
            spans.sort()
            assert spans[0][0] == 0 and all(a[1] == b[0] for a, b in pairwise(spans)), key
            assert spans[-1][1] in (None, heights[key]), key


def test_inspect_says_what_a_lora_changes(tmp_path):
    stem = "diffusion_model.block.layers.20.mlp.down_proj"
    query = "lora_unet_block_layers_0_attention_linear_q_video"
    lora = {f"{stem}.lora_A.weight": torch.randn(4, 13652), f"{stem}.lora_B.weight": torch.randn(5120, 4),
            f"{stem}.dora_scale": torch.ones(5120, 1), f"{query}.lora_down.weight": torch.randn(8, 5120),
            f"{query}.lora_up.weight": torch.randn(5120, 8), "text_model.layers.0.lora_A.weight": torch.randn(4, 8)}
    save_file(lora, tmp_path / "style.safetensors")
    text = describe(tmp_path / "style.safetensors")
    assert "changes    2 of MagiHuman's layers, ranks 4 to 8, DoRA" in text
    assert "without a place (1): 'text_model.layers.0.lora_A.weight' (no such layer)" in text
    assert "problem" not in text and "not for the released" not in text
    small = {key: value[:64] for key, value in lora.items()}
    save_file({key: value.contiguous() for key, value in small.items()}, tmp_path / "small.safetensors")
    assert "it is not for the released networks: 'diffusion_model" in describe(tmp_path / "small.safetensors")
    save_file({"text_model.layers.0.lora_A.weight": torch.ones(4, 8)}, tmp_path / "other.safetensors")
    assert "problem    without a place (1)" in describe(tmp_path / "other.safetensors")


@pytest.mark.parametrize("prefix", [*PREFIXES, "lora_unet_"])
def test_convert_gives_a_lora_the_names_of_comfyuis_loader(prefix, tmp_path, caplog):
    layers = ("block.layers.20.mlp.down_proj", "block.layers.5.attention.linear_q_video", "adapter.video_embedder")
    lora = {"text_model.lora_A.weight": torch.ones(2, 8)}
    for layer in layers:
        layer = prefix + (layer.replace(".", "_") if prefix.endswith("_") else layer)
        lora |= {f"{layer}.lora_down.weight": torch.randn(2, 8), f"{layer}.lora_up.weight": torch.randn(8, 2),
                 f"{layer}.alpha": torch.tensor(4.0), f"{layer}.lora_magnitude_vector": torch.rand(8)}
    save_file(lora, tmp_path / "in.safetensors")
    target = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", dtype="bf16")
    written = dict(open_checkpoint(target).items())
    assert set(written) == {f"diffusion_model.{layer}{ending}" for layer in layers
                            for ending in (".lora_A.weight", ".lora_B.weight", ".alpha", ".dora_scale")}  # fmt: skip
    assert written[f"diffusion_model.{layers[0]}.dora_scale"].shape == (8, 1)
    assert written[f"diffusion_model.{layers[0]}.lora_A.weight"].dtype == torch.bfloat16
    assert "1 of its tensors are left out: 'text_model.lora_A.weight' (no such layer)" in caplog.text


def test_convert_refuses_a_lora_of_another_model(tmp_path):
    save_file({"text_model.layers.0.lora_A.weight": torch.ones(4, 8)}, tmp_path / "in.safetensors")
    with pytest.raises(CheckpointError, match="none of its tensors belongs to a MagiHuman network"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    with pytest.raises(InputError, match="fp8 is for networks"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", dtype="fp8")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_magnitude_that_is_one_number_is_reported():
    layer = "block.layers.20.attention.linear_g"
    lora = {f"{layer}.lora_A.weight": torch.ones(1, 128), f"{layer}.lora_B.weight": torch.ones(1, 1),
            f"{layer}.dora_scale": torch.tensor(2.0)}  # fmt: skip
    one_head = replace(RELEASED, hidden=128, heads=1, kv_heads=1)
    assert "one magnitude per row" in split_lora(lora, one_head).unmatched[f"{layer}.dora_scale"]


@pytest.mark.parametrize("endings", [(".lora.up.weight", ".lora.down.weight"), (".lora_B", ".lora_A"), (".diff",),
                                     (".lora_B.default.weight", ".lora_A.default.weight")])  # fmt: skip
def test_each_spelling_that_is_applied_is_also_recognized(endings, weights, clip, tmp_path):
    layer = "block.layers.3.mlp.down_proj"
    up, down = pairs(weights, [layer])[layer]
    tensors = (up, down) if len(endings) == 2 else (up @ down,)
    path = tmp_path / "mine.safetensors"
    save_file({layer + ending: tensor for ending, tensor in zip(endings, tensors, strict=True)}, path)
    expected = merged(weights, {layer: up @ down})
    assert_file_equals_merge(path, weights, clip, expected)
    assert "a LoRA" in describe(path) and "1 of MagiHuman's layers" in describe(path)
    assert_file_equals_merge(convert(path, tmp_path / "out.safetensors"), weights, clip, expected)


CONFIGS = {
    "alpha": ({"r": RANK, "lora_alpha": 16}, 16 / RANK, 16 / RANK),
    "rank stabilized": ({"r": RANK, "lora_alpha": 16, "use_rslora": True}, 16 / RANK**0.5, 16 / RANK**0.5),
    "a layer's own": ({"r": RANK, "lora_alpha": 16, "alpha_pattern": {"mlp.down_proj": 2, "proj": 99}}, 16 / RANK,
                      2 / RANK),
    "as diffusers writes": ({"r": RANK, "lora_alpha": 16, "alpha_pattern": {
        "^block.layers.3.mlp.down_proj": 2, "^block.layers.5.mlp.down_proj": 2, "^mlp.up_gate_proj": 99}}, 16 / RANK,
        2 / RANK),
    "escaped": ({"r": RANK, "lora_alpha": 16, "alpha_pattern": {r"mlp\.down_proj$": 2}}, 16 / RANK, 2 / RANK),
    "the first that fits": ({"r": RANK, "lora_alpha": 16, "alpha_pattern": {"down_proj": 2, "mlp.down_proj": 99}},
                            16 / RANK, 2 / RANK),
    "no numbers": ({"r": RANK, "lora_alpha": "16"}, 1.0, 1.0),
    "no configuration": ([1, 2], 1.0, 1.0),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("place", ["beside", "metadata"])
def test_a_configuration_states_alpha(name, place, weights, clip, tmp_path):
    config, scale, own = CONFIGS[name]
    lora = pairs(weights)
    texts = None
    if place == "beside":
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    elif isinstance(config, dict):
        texts = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})}
    save_file(fused(lora, prefix="base_model.model."), tmp_path / "adapter_model.safetensors", texts)
    changes = {layer: (own if layer.endswith("mlp.down_proj") else scale) * up @ down
               for layer, (up, down) in lora.items()}
    assert_file_equals_merge(tmp_path / "adapter_model.safetensors", weights, clip, merged(weights, changes))
    # ComfyUI's loader reads no configuration: after `convert` the file itself says it.
    assert ("magihuman convert" in describe(tmp_path / "adapter_model.safetensors")) == (scale != 1)
    converted = convert(tmp_path / "adapter_model.safetensors", tmp_path / "mine.safetensors")
    (tmp_path / "adapter_config.json").unlink(missing_ok=True)
    assert_file_equals_merge(converted, weights, clip, merged(weights, changes))


def test_patterns_that_are_not_read_or_fit_nothing_are_said(weights, config, tmp_path, caplog):
    save_file(fused(pairs(weights)), tmp_path / "adapter_model.safetensors")
    endless = "(block|layers)+.*.*.*$"
    table = {r"block\.layers\.[0-3]\..*": 64, endless: 64, "mlp.down_proj": "2", "mlp.down_proj.x": 3,
             "transformer.proj": 3, "linear_qkv": 32}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16, "alpha_pattern": table}))
    found = split_lora(open_checkpoint(tmp_path), config)
    scales = {key: deltas[0].scale for key, deltas in found.deltas.items()}
    assert {scale for key, scale in scales.items() if "linear_qkv" not in key and "gate" not in key} == {16 / RANK}
    assert scales["blocks.2.experts.shared.attention.linear_qkv.weight"] == 32 / RANK
    assert f"3 entries are not read here, the first is {next(iter(table))!a}: 64." in caplog.text
    assert "2 names in its alpha_pattern are of no layer in it, the first is 'mlp.down_proj.x'" in caplog.text


def test_a_configuration_that_may_be_of_another_file_is_not_used(weights, clip, tmp_path, caplog):
    lora = pairs(weights)
    for name in ("one", "two"):
        save_file(fused(lora), tmp_path / f"{name}.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 16}))
    assert_file_equals_merge(tmp_path / "one.safetensors", weights, clip, merged(weights, products(lora)))
    assert "is not used" in caplog.text


@pytest.mark.parametrize("wrapped", ["_orig_mod.{}", "transformer._orig_mod.{}", "_fsdp_wrapped_module.{}",
                                     "module._fsdp_wrapped_module._orig_mod.{}"])
@pytest.mark.parametrize("inside", [False, True])
def test_names_that_training_wrapped(wrapped, inside, weights, clip, tmp_path):
    lora = pairs(weights)
    within = ("layers.0.", "layers.0._checkpoint_wrapped_module.") if inside else ("", "")
    named = {wrapped.format(layer.replace(*within)): pair for layer, pair in lora.items()}
    save_file(fused(named), tmp_path / "a.safetensors")
    assert_file_equals_merge(tmp_path / "a.safetensors", weights, clip, merged(weights, products(lora)))
    assert "training wrapped its names" in describe(tmp_path / "a.safetensors")
    # Whole networks, too.
    save_file({f"_orig_mod.{key}": value for key, value in weights.items()}, tmp_path / "distill.safetensors")
    network, plain = (load_dit(each, dtype=torch.float32) for each in (tmp_path / "distill.safetensors", weights))
    assert torch.equal(outputs(network, clip)[0], outputs(plain, clip)[0])
