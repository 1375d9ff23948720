"""Our MODEL among other nodes: core's own, and what community packs do around samplers and guidance."""

import comfy.hooks
import comfy.model_prefetch
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode, WanContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_hunyuan import EmptyHunyuanLatentVideo
from comfy_extras.nodes_lora_extract import LORAType, calc_lora_model
from comfy_extras.nodes_lt import LTXVConcatAVLatent, LTXVSeparateAVLatent
from comfy_extras.nodes_mask import SolidMask
from comfy_extras.nodes_model_advanced import ModelSamplingSD3, RescaleCFG
from comfy_extras.nodes_model_merging import ModelMergeSimple, ModelSubtract
from magihuman_pack.magihuman_core import load_dit
from magihuman_pack.magihuman_core.sampling.solvers import flow_sigmas
from magihuman_pack.nodes import latents, sampling
from magihuman_pack.nodes.adapter import sampling as adapter
from magihuman_pack.nodes.adapter.load_model import load_model
from magihuman_pack.nodes.adapter.streams import check_shapes, nested
from small_clip import AUDIO, OTHER, TEXT, VIDEO, max_error, random, relative_error, sample, with_lora

import nodes

TEXTS = {"positive": [[TEXT, {}]], "negative": [[OTHER, {}]]}
EMPTY = {"samples": nested(torch.zeros_like(VIDEO), torch.zeros_like(AUDIO))}
SR_LATENT = {"samples": nested(random(1, 48, 2, 4, 4), random(1, 64, 5)), latents.UPSCALED: True}


@pytest.fixture(scope="module")
def base(models):
    return load_model(models / "diffusion_models/magihuman/base", "base", torch.float32)


@pytest.fixture(scope="module")
def upscaler(models):
    return load_model(models / "diffusion_models/magihuman/540p_sr", "sr_540p", torch.float32)


def run(node, *args, **inputs):
    return node.execute(*args, **inputs).args[0]


def one_node(model, latent=EMPTY, steps=2, mode="auto", level=220):
    return run(sampling.MagiHumanSampler, model=model, **TEXTS, latent_image=latent, seed=7, mode=mode, steps=steps,
               sr_noise_level=level)["samples"].unbind()


def in_parts(model, sampler, sigmas=None, latent=EMPTY, guidance="auto"):
    guider = run(sampling.MagiHumanGuider, model=model, **TEXTS, guidance=guidance, video=5.0, video_late=2.0,
                 audio=5.0, sr_scale=3.5)
    sigmas = flow_sigmas(2) if sigmas is None else sigmas
    return run(SamplerCustomAdvanced, noise=run(RandomNoise, noise_seed=7), guider=guider, sampler=sampler,
               sigmas=sigmas, latent_image=latent)["samples"].unbind()


def stock(model, latent=EMPTY, sampler="euler", cfg=3.0):
    return nodes.KSampler().sample(model, 7, 2, cfg, sampler, "simple", TEXTS["positive"], TEXTS["negative"],
                                   latent)[0]["samples"].unbind()


def hidden(sampler):
    """A sampler as Detail Daemon and Lying Sigma wrap it: the solver sees a plain function for a model."""

    def wrapped(model, x, sigmas, **kwargs):
        def plain(x, sigma, **extra):
            return model(x, sigma, **extra)

        plain.inner_model = model.inner_model
        return sampler.sampler_function(plain, x, sigmas, **kwargs, **sampler.extra_options)

    return comfy.samplers.KSAMPLER(wrapped)


@pytest.mark.parametrize("role", ["base", "upscaler"])
def test_a_wrapped_sampler_starts_as_a_plain_one(role, request, caplog):
    model, latent = request.getfixturevalue(role), SR_LATENT if role == "upscaler" else EMPTY
    solver = adapter.make_sampler("unipc")
    assert max_error(in_parts(model, hidden(solver), latent=latent), in_parts(model, solver, latent=latent)) == 0
    assert "sr_noise_level" not in caplog.text
    if role == "upscaler":
        solver = adapter.make_sampler("unipc", noise_level=300)
        in_parts(model, hidden(solver), latent=latent)
        assert "sr_noise_level is 220 instead of 300" in caplog.text


def test_super_resolution_of_a_clip_that_was_not_enlarged_is_warned_of(upscaler, caplog):
    one_node(upscaler, SR_LATENT)
    assert "not enlarged" not in caplog.text
    one_node(upscaler, {"samples": SR_LATENT["samples"]})
    assert "connect MagiHuman Latent Upscale before" in caplog.text


@pytest.mark.parametrize("sampler", ["euler", "uni_pc"])
def test_super_resolution_starts_right_under_another_schedule(upscaler, sampler):
    """ModelSamplingSD3 with the model's own shift changes nothing, for stock samplers too."""
    same = ModelSamplingSD3().patch(upscaler, 5.0)[0]
    solver = comfy.samplers.sampler_object(sampler)
    wanted = in_parts(upscaler, solver, latent=SR_LATENT)
    assert max_error(in_parts(same, solver, latent=SR_LATENT), wanted) == 0
    start = SR_LATENT["samples"].unbind()[0]
    assert relative_error(wanted[:1], [start]) < 1.5, "the clip it starts from must still be there"
    assert max_error(in_parts(upscaler, solver, latent=SR_LATENT), wanted) == 0, "the model itself stays as it is"


def test_shift_of_model_sampling_is_honoured(model):
    shifted = ModelSamplingSD3().patch(model, 2.0)[0]
    wanted = in_parts(model, adapter.make_sampler("renoise"), flow_sigmas(2, 2.0))
    assert max_error(one_node(shifted), wanted) == 0
    assert max_error(one_node(model), wanted) > 1e-3


def test_cfg_functions_of_other_nodes_take_effect(base):
    plain = one_node(base)
    assert max_error(one_node(RescaleCFG().patch(base, 0.0)[0]), plain) < 1e-4, "0 rescales nothing"
    assert max_error(one_node(RescaleCFG().patch(base, 0.7)[0]), plain) > 1e-2
    seen, told = set(), []
    patched = base.clone()

    def cfg(args):
        seen.add(args["cond_scale"])
        return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])

    patched.set_model_sampler_cfg_function(cfg)
    patched.set_model_sampler_post_cfg_function(lambda args: told.append(args["cond_scale"]) or args["denoised"])
    assert max_error(one_node(patched, steps=8), one_node(base, steps=8)) < 1e-5
    assert seen == {5.0, 2.0}
    assert told == [5.0] * 7 + [2.0]  # the picture's: the eighth step is below the noise level of 0.5


def test_cfg_functions_without_guidance_are_named(model, caplog):
    assert max_error(one_node(RescaleCFG().patch(model, 0.7)[0]), one_node(model)) == 0
    assert caplog.text.count("this way of sampling has none") == 1


@pytest.mark.parametrize("image_like", [True, False])
def test_a_sound_held_as_for_other_models_is_kept(model, image_like):
    video, audio = LTXVSeparateAVLatent.execute({"samples": nested(VIDEO, AUDIO)}).args
    if image_like:
        audio = nodes.SetLatentNoiseMask().set_mask(audio, run(SolidMask, 0.0, 64, 48))[0]
    else:
        audio = audio | {"noise_mask": torch.zeros(1, 1, 9)}
    joined = run(LTXVConcatAVLatent, video, audio)
    got = one_node(model, joined)
    assert max_error(got[1], AUDIO) < 1e-5 and max_error(got[0], VIDEO) > 1e-2
    guided = in_parts(model, adapter.make_sampler("renoise"), latent=joined)
    assert max_error(guided, got) == 0


def test_a_video_latent_of_other_nodes_gets_its_sound(model):
    empty = run(EmptyHunyuanLatentVideo, 96, 64, 9, 1)
    got = one_node(model, empty)
    assert [tuple(stream.shape) for stream in got] == [(1, 48, 3, 4, 6), (1, 64, 9)]
    # As Wan22ImageToVideoLatent makes it: one stream with its first latent frame held.
    mask = torch.ones(1, 1, 3, 4, 6)
    mask[:, :, :1] = 0
    held = one_node(model, {"samples": VIDEO, "noise_mask": mask})
    assert max_error(held[0][:, :, :1], VIDEO[:, :, :1]) < 1e-5
    assert held[1].shape == (1, 64, 9) and held[1].abs().max() > 0


def long_clip(frames=7):
    return {"samples": nested(torch.zeros(1, 48, frames, 4, 6), torch.zeros(1, 64, 4 * frames - 3))}


@pytest.mark.parametrize("fix", [True, False])
@pytest.mark.parametrize("schedule", ["standard_static", "batched", "standard_uniform", "looped_uniform"])
def test_context_windows_hear_the_audio_of_their_frames(model, schedule, fix, monkeypatch):
    network, calls = type(model.model.diffusion_model), []
    forward = network.forward_many

    def recorded(self, inputs, **kwargs):
        calls.append([(video.shape[2], audio.shape[2]) for video, audio, _ in inputs])
        return forward(self, inputs, **kwargs)

    monkeypatch.setattr(network, "forward_many", recorded)
    windowed = run(ContextWindowsManualNode, model, 4, 1, schedule, 1, False, "pyramid", 2, False,
                   causal_window_fix=fix)
    got = one_node(windowed, long_clip())
    assert all(bool(torch.isfinite(stream).all()) for stream in got)
    assert len(calls) >= 4
    for ((frames, length),) in calls:
        assert frames <= 4 and length == 4 * frames - 1
    if schedule == "standard_static" and not fix:
        fixed = run(ContextWindowsManualNode, model, 4, 1, schedule, 1, False, "pyramid", 2, False)
        assert max_error(one_node(fixed, long_clip()), got) < 1e-5
    assert max_error(got, one_node(model, long_clip())) > 1e-3


def test_context_windows_longer_than_the_clip_and_freenoise(base):
    wan = run(WanContextWindowsManualNode, base, 81, 30, "standard_uniform", 1, False, "pyramid", False)
    assert max_error(one_node(wan, long_clip()), one_node(base, long_clip())) == 0
    wan = run(WanContextWindowsManualNode, base, 13, 4, "standard_static", 1, False, "overlap-linear", True)
    assert all(bool(torch.isfinite(stream).all()) for stream in one_node(wan, long_clip()))


@pytest.mark.parametrize("prefix", ["", "transformer.", "diffusion_model.", "_orig_mod.", "transformer._orig_mod.",
                                    "_fsdp_wrapped_module.", "diffusion_model.base_model.model.", "base_model.model.",
                                    "block.layers.0._fsdp_wrapped_module.{}",
                                    "block.layers.0._checkpoint_wrapped_module.{}"])
def test_lora_names_with_other_prefixes_are_found(model, plain, official, prefix, caplog):
    layer = "block.layers.0.attention.linear_qkv"
    rows, columns = official[layer + ".weight"].shape
    torch.manual_seed(3)
    down, up = torch.randn(4, columns), torch.randn(rows, 4)
    named = prefix + layer if "{}" not in prefix else prefix.format("attention.linear_qkv")
    lora = {f"{named}.lora_A.weight": down, f"{named}.lora_B.weight": up}
    wanted = {f"diffusion_model.{layer}.lora_A.weight": down, f"diffusion_model.{layer}.lora_B.weight": up}
    got = sample(with_lora(model, lora))
    assert "not loaded" not in caplog.text.lower()
    assert max_error(got, sample(with_lora(model, wanted))) == 0
    assert max_error(got, plain) > 1e-2


def test_the_role_after_a_merge_is_stated(model, base, caplog):
    merged = ModelMergeSimple().merge(base, model, 0.7)[0]
    assert caplog.text.count("A base model is merged with a distilled one") == 1
    assert merged.model.role == "base"
    ModelMergeSimple().merge(base, base, 0.7)
    assert caplog.text.count("is merged with") == 1
    assert all(bool(torch.isfinite(stream).all()) for stream in sample(merged))


@pytest.mark.parametrize("quantize", ["float8_e4m3fn", "int8_tensorwise"])
def test_weights_in_8_bits_are_merged_extracted_and_hooked(distilled, model, plain, official, quantize):
    narrow = load_model(distilled, "distilled", None, quantize)
    assert relative_error(sample(ModelMergeSimple().merge(narrow, narrow, 0.5)[0]), sample(narrow)) < 0.05
    layer = "block.layers.0.mlp.up_gate_proj"
    rows, columns = official[layer + ".weight"].shape
    lora = {f"diffusion_model.{layer}.lora_A.weight": random(2, columns) * 0.3,
            f"diffusion_model.{layer}.lora_B.weight": random(rows, 2) * 0.3}
    changed = with_lora(model, lora, 1.0)
    effect = relative_error(sample(changed), plain)
    narrow_changed = with_lora(narrow, lora, 1.0)
    assert relative_error(sample(narrow_changed), sample(changed)) < 0.5 * effect

    hook = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
    positive = [[TEXT, {"hooks": hook}]]
    guider = adapter.StreamGuider(narrow, None, positive)
    got = guider.sample(nested(VIDEO, AUDIO), nested(torch.zeros_like(VIDEO), torch.zeros_like(AUDIO)),
                        adapter.make_sampler("unipc"), flow_sigmas(2), seed=1, disable_pbar=True).unbind()
    assert relative_error(got, sample(changed)) < 0.5 * effect
    assert relative_error(sample(narrow), plain) < 0.1, "the model itself stays as it is"

    difference = ModelSubtract().merge(narrow_changed, narrow, 1.0)[0]
    extracted = calc_lora_model(difference, 4, "diffusion_model.", "diffusion_model.", {}, LORAType.STANDARD)
    key = f"diffusion_model.{layer.replace('block.layers.0', 'blocks.0.experts.video')}"
    assert f"{key}.lora_up.weight" in extracted
    assert not any(".block.layers." in key for key in extracted)


def test_guidance_brings_each_block_in_once_for_both_texts(base, monkeypatch):
    """Through our guider and stock ones, and the same numbers as in two passes."""
    popped, brought = [], []
    cast = comfy.ops.cast_bias_weight
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", lambda layer, *args, **kwargs: brought.append(
        layer.weight.nbytes) or cast(layer, *args, **kwargs))
    pop = comfy.model_prefetch.prefetch_queue_pop
    monkeypatch.setattr(comfy.model_prefetch, "prefetch_queue_pop",
                        lambda queue, device, module, *args, **kwargs: popped.append(module) or pop(
                            queue, device, module, *args, **kwargs))
    once = one_node(base), stock(base)
    blocks = list(base.model.diffusion_model.blocks)
    assert popped == [*blocks, None] * 4  # two steps in each of the two runs
    bytes_once = sum(brought)
    popped.clear()
    brought.clear()
    monkeypatch.setattr("magihuman_pack.nodes.adapter.conds.TextCond.can_concat", lambda self, other: False)
    twice = one_node(base), stock(base)
    assert popped == [*blocks, None] * 8
    assert sum(brought) >= 1.8 * bytes_once > 0
    for a, b in zip(once, twice, strict=True):
        assert max_error(a, b) < 1e-5


def test_block_patches_see_one_condition_at_a_time(base):
    seen = []

    def block(args, extra):
        options = args["transformer_options"]
        seen.append((tuple(options["cond_or_uncond"]), len(options["uuids"]), args["img"].shape[0]))
        return extra["original_block"](args)

    patched = base.clone()
    patched.set_model_patch_replace(block, "dit", "double_block", 2)
    assert max_error(one_node(patched), one_node(base)) == 0
    assert sorted(set(seen)) == [((0,), 1, 1), ((1,), 1, 1)] and len(seen) == 4


def test_areas_and_hooks_keep_conditions_apart(base, official):
    layer = "block.layers.0.mlp.up_gate_proj"
    rows, columns = official[layer + ".weight"].shape
    lora = {f"diffusion_model.{layer}.lora_A.weight": random(2, columns),
            f"diffusion_model.{layer}.lora_B.weight": random(rows, 2)}
    hooked = {**TEXTS, "positive": [[TEXT, {"hooks": comfy.hooks.create_hook_lora(lora, 1.0, 0.0)}]]}

    def guided(model, texts):
        guider = adapter.StreamGuider(model, sampling.FULL_GUIDANCE, texts["positive"], texts["negative"])
        return guider.sample(nested(VIDEO, AUDIO), nested(torch.zeros_like(VIDEO), torch.zeros_like(AUDIO)),
                             adapter.make_sampler("unipc"), flow_sigmas(1), seed=1, disable_pbar=True).unbind()

    def velocity(text, change):
        tensors = dict(official_base)
        if change:
            tensors[layer + ".weight"] = tensors[layer + ".weight"] + lora[f"diffusion_model.{layer}.lora_B.weight"] @ (
                lora[f"diffusion_model.{layer}.lora_A.weight"])
        with torch.no_grad():
            return load_dit(tensors, dtype=torch.float32)(VIDEO, AUDIO, text)

    from magihuman_pack.magihuman_core.weights.dit_keys import official_state_dict

    network = base.model.diffusion_model
    official_base = {key: tensor.clone() for key, tensor in official_state_dict(network).items()}
    cond, uncond = velocity(TEXT, True), velocity(OTHER, False)
    sigma = float(flow_sigmas(1)[0])
    form = base.model.latent_format
    video = form.process_out(VIDEO - sigma * (uncond[0] + 5 * (cond[0] - uncond[0])))
    audio = AUDIO - sigma * (uncond[1] + 5 * (cond[1] - uncond[1]))
    assert max_error(guided(base, hooked), [video, audio]) < 2e-3


def test_the_latent_of_another_models_picture_or_clip_is_named(model):
    picture = {"samples": torch.zeros(1, 4, 8, 8), "downscale_ratio_spacial": 8}  # as Empty Latent Image makes it
    with pytest.raises(ValueError, match=r"a picture's, \[1, 4, 8, 8\], .* Empty MagiHuman Latent"):
        one_node(model, picture)
    with pytest.raises(ValueError, match="video latent has 16 channels, but this model takes 48"):
        one_node(model, {"samples": random(1, 16, 3, 4, 6)})
    with pytest.raises(ValueError, match="without the sound"):
        check_shapes([(1, 48, 3, 4, 6)], (48, 64))
