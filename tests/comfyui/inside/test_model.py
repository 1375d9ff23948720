"""The MODEL from within ComfyUI: patches of blocks, guidance, compiling, saving, copies and memory."""


import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from magihuman_pack.magihuman_core import load_dit
from magihuman_pack.nodes.adapter import sampling
from magihuman_pack.nodes.adapter.load_model import load_model
from magihuman_pack.nodes.adapter.lora import is_alias
from magihuman_pack.nodes.adapter.network import by_text
from small_clip import AUDIO, OTHER, TEXT, VIDEO, max_error, random, sample, sample_by_core, with_lora


def test_block_patches_attention_overrides_and_wrappers_are_called(model, plain):
    calls = {"attention": 0, "blocks": [], "model": 0}

    def override(function, *args, **kwargs):
        calls["attention"] += 1
        return function(*args, **kwargs)

    def block(args, extra):
        calls["blocks"].append(args["transformer_options"]["block_index"])
        before = args["img"].clone()
        out = extra["original_block"](args)
        assert torch.equal(args["img"], before), "a block patch's input must stay as it was"
        return out

    def wrapper(executor, *args, **kwargs):
        calls["model"] += 1
        assert isinstance(args[0], list) and args[0][0].dtype == torch.float32 and args[2].dtype == torch.float32
        return executor(*args, **kwargs)

    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    patched.set_model_patch_replace(block, "dit", "double_block", 2)
    patched.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, wrapper)
    assert max_error(sample(patched), plain) == 0
    assert calls == {"attention": 2 * 6, "blocks": [2, 2], "model": 2}  # two steps, six layers


def test_what_a_wrapper_writes_into_the_latent_stays_with_it(model, plain):
    """As core's EasyCache does, which adds what it remembers to the network's input, and returns that."""
    def wrapper(executor, x, *args, **kwargs):
        velocities = executor(x, *args, **kwargs)
        for stream in x:
            stream += 1
        return velocities

    patched = model.clone()
    patched.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, wrapper)
    assert max_error(sample(patched), plain) == 0


def test_guidance_with_texts_of_different_length_equals_the_cores(model, official):
    """They cannot be one batch, so they run apart."""
    wanted = sample_by_core(load_dit(official, dtype=torch.float32), model.model.latent_format, negative=OTHER)
    assert max_error(sample(model, negative=OTHER), wanted) <= 1e-4


def test_torch_compile_of_blocks_changes_nothing(model, plain):
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend="eager", keys=["diffusion_model.blocks.0", "diffusion_model.blocks.3"])
    assert max_error(sample(compiled), plain) <= 1e-4


@pytest.mark.timeout(300)
def test_fused_elementwise_work_changes_nothing(distilled, plain):
    """Also beside guidance, a LoRA and ComfyUI's own compiling of blocks."""
    fused = load_model(distilled, "distilled", torch.float32, fuse=True)
    assert max_error(sample(fused), plain) <= 1e-4
    compiled = fused.clone()
    set_torch_compile_wrapper(compiled, backend="eager", keys=["diffusion_model.blocks.0"])
    assert max_error(sample(compiled), plain) <= 1e-4
    name = "diffusion_model.block.layers.2.mlp.down_proj"
    rows, columns = fused.model.diffusion_model.blocks[2].experts["shared"].mlp.down_proj.weight.shape
    lora = {f"{name}.lora_A.weight": random(4, columns), f"{name}.lora_B.weight": random(rows, 4)}
    unfused = load_model(distilled, "distilled", torch.float32)
    wanted = sample(with_lora(unfused, lora), negative=OTHER)
    assert max_error(sample(with_lora(fused, lora), negative=OTHER), wanted) <= 1e-4


def test_dynamic_memory_management_changes_nothing(distilled, plain, monkeypatch):
    """With it ComfyUI's layers have no weight until it is loaded."""
    with monkeypatch.context() as patch:
        patch.setattr(comfy.memory_management, "aimdo_enabled", True)
        dynamic = load_model(distilled, "distilled", torch.float32)
    assert max_error(sample(dynamic), plain) == 0


def test_merging_a_model_with_itself_changes_nothing(model, plain):
    """Merging walks over all names, those of aliases too."""
    half = model.clone()
    half.add_patches(model.get_key_patches("diffusion_model."), 0.5, 0.5)
    assert max_error(sample(half), plain) <= 1e-4


def test_aliases_are_not_saved(model):
    saved = model.state_dict_for_saving()
    assert saved
    assert [key for key in saved if is_alias(key.removeprefix("model."))] == []


def test_required_memory_grows_with_the_batch_and_covers_the_residual_stream(model):
    small, large = model.memory_required([1, 1, 100_000]), model.memory_required([2, 1, 100_000])
    assert large == 2 * small
    tokens = 100_000 // (4 * 48)
    assert small > 4 * 64 * tokens  # 64 channels in fp32


def test_required_memory_counts_joined_texts_and_decoded_weights(model, distilled):
    one, apart, joined, three = (
        model.model.memory_required([count, 1, 100_000], cond_shapes={"text_lengths": [[1]] * texts})
        for count, texts in ((1, 1), (2, 0), (2, 2), (3, 3)))
    assert one < joined < apart, "packed, of one block's inner widths only one piece is there"
    assert three == 2 * joined - one
    config = model.model.diffusion_model.config
    decoded, as_it_is = (load_model(distilled, "distilled", None, quantize, fast).model
                         for quantize, fast in (("float8_e4m3fn", False), ("int8_tensorwise", True)))
    widest = config.hidden * max(2 * config.gelu_width, 3 * config.swiglu_width)
    assert decoded.copied_weights() == widest * decoded.diffusion_model.compute_dtype.itemsize
    assert as_it_is.copied_weights() == model.model.copied_weights() == 0


def test_an_estimate_is_not_made_anew_for_each_prompt(model, monkeypatch, caplog):
    told = []
    monkeypatch.setattr(sampling, "log_seconds", lambda config, **options: told.append(options))
    found = {}
    for length, guidance in ((7, None), (9, None), (9, sampling.Guidance())):
        guider = sampling.StreamGuider(model, guidance, [[random(1, length, 32), {}]], [[OTHER, {}]])
        guider._shapes = [tuple(VIDEO.shape), tuple(AUDIO.shape)]
        found[length, guidance is not None] = guider.memory().activations
        guider.log_seconds(8)
    assert found[7, False] == found[9, False] < found[9, True]
    assert [options["guided"] for options in told] == [False, False, True]
    assert {(options["steps"], options["width"], options["height"], options["tokens"], options["text_tokens"])
            for options in told} == {(8, 96, 64, 9, 640)}


def test_the_estimate_names_the_clip_and_what_to_lower(model):
    guider = sampling.StreamGuider(model, None, [[TEXT, {}]])
    guider._shapes = [tuple(VIDEO.shape), tuple(AUDIO.shape)]
    found = guider.memory()
    assert found.weights == model.model_size()
    assert found.activations > 4 * 64 * 18 * 2  # 18 video tokens, and the residual stream twice
    assert "96x64" in found.clip and "narrower weight_dtype" in found.advice


def test_the_model_takes_little_more_memory_than_its_file(model, official):
    assert comfy.model_management.module_size(model.model) < 1.2 * sum(t.nbytes for t in official.values())


def test_a_deep_copy_is_loaded_again_and_samples_the_same(model, plain):
    copy = model.clone(disable_dynamic=True, force_deepcopy=True)
    assert copy.model is not model.model
    assert max_error(sample(copy), plain) == 0


def test_what_is_no_layer_of_comfyuis_comes_to_the_device_of_a_model_loaded_in_part(model):
    copy = model.clone(disable_dynamic=True, force_deepcopy=True)
    for callback in copy.get_all_callbacks(comfy.patcher_extension.CallbacksMP.ON_LOAD):
        callback(copy, torch.device("meta"), 0, False, False)
    for name, module in copy.model.diffusion_model.named_modules():
        managed = hasattr(module, "comfy_cast_weights")
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            assert tensor.is_meta != managed, name


def test_conditioning_of_another_encoder_is_named(model):
    with pytest.raises(ValueError, match=r"conditioning has 16 channels, .* Load MagiHuman Text Encoder"):
        sample(model, positive=random(1, 7, 16))


@pytest.mark.parametrize(("lengths", "shape", "texts"), [
    ((7, 9), (2, 9), [7, 9]),
    ((7, 9), (4, 9), [7, 9]),
    ((9,), (1, 12), [12]),  # changed by another node
    ((9, 9), (2, 12), [12]),
    ((9, 9), (1, 9), [9]),  # conditions that another node runs one by one
    ((7, 9), (2, 6), [6]),  # cut to what both have
    ((7, 9), (2, 12), None),
    ((7, 9), (2, 8), None),
    ((7, 9), (1, 9), None),
])  # fmt: skip
def test_joined_texts_reach_the_network_without_padding(lengths, shape, texts):
    streams = [torch.zeros(shape[0], 1)] * 2
    text = torch.zeros(*shape, 32)
    if texts is None:
        with pytest.raises(ValueError, match="padding cannot be told"):
            by_text(*streams, text, lengths)
    else:
        assert [part.shape[1] for *_, part in by_text(*streams, text, lengths)] == texts
