"""Clips longer than a window: the core's estimate through every way of sampling in ComfyUI, and what windows cost."""

from itertools import pairwise

import comfy.nested_tensor
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import pytest
import small_clip
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode, WanContextWindowsManualNode
from magihuman_pack.magihuman_core import Guidance, InputError, flow_sigmas, pack_latents, sample_unipc, unpack_latents
from magihuman_pack.magihuman_core.loading.dit import load_dit
from magihuman_pack.magihuman_core.sampling.noise import start_noise
from magihuman_pack.magihuman_core.sampling.solvers import sample_renoise
from magihuman_pack.magihuman_core.sampling.windows import WindowedDenoiser, plan_windows
from magihuman_pack.magihuman_core.text.script import Segment
from magihuman_pack.nodes.adapter import sampling
from magihuman_pack.nodes.adapter.conds import SCRIPT, Script
from magihuman_pack.nodes.adapter.windows import with_windows
from magihuman_pack.nodes.sampling import MagiHumanSampler
from small_clip import OTHER, TEXT, max_error

import nodes

LENGTH = 46  # audio latents: 12 latent frames, in windows of 5 that share 2
WINDOW, OVERLAP = 0.64, 0.32  # seconds
SEED = 8
nested = comfy.nested_tensor.NestedTensor


@pytest.fixture(scope="module")
def network(distilled):
    return load_dit(distilled, dtype=torch.float32)


@pytest.fixture
def start():
    """Clean latents with a first image, and audio that is kept for its first half."""
    video, audio = small_clip.random(1, 48, 12, 4, 6), small_clip.random(1, 64, LENGTH)
    video_mask, audio_mask = torch.ones(1, 1, 12, 4, 6), torch.ones(1, 1, LENGTH)
    video_mask[:, :, 0], audio_mask[:, :, :23] = 0, 0
    return video, audio, video_mask, audio_mask


def by_core(network, latent_format, start, solve, guidance=None, steps=2, text_for=lambda window: TEXT,
            anchor=True):
    """The clip of the core's own windows."""
    video, audio, video_mask, audio_mask = start
    noise = start_noise((video.shape, audio.shape), SEED)
    x, shapes = pack_latents(*noise)
    negative = None if guidance is None else OTHER
    with torch.no_grad():
        model = WindowedDenoiser(network, shapes, plan_windows(LENGTH, 5, 2),
                                 lambda window: (text_for(window), negative), guidance,
                                 (latent_format.process_in(video), video_mask), (audio, audio_mask), anchor=anchor)
        x = solve(model, x, flow_sigmas(steps), {"seed": SEED}, disable=True)
        video, audio = unpack_latents(x, shapes)
    return latent_format.process_out(video), audio


def latent(start) -> dict:
    video, audio, video_mask, audio_mask = start
    return {"samples": nested([video, audio]), "noise_mask": nested([video_mask, audio_mask])}


def test_sampler_makes_the_clip_of_the_command_line(model, network, start):
    windowed = with_windows(model, WINDOW, OVERLAP)
    out = MagiHumanSampler.execute(windowed, [[TEXT, {}]], latent(start), SEED, "auto", 2, 0)[0]["samples"].unbind()
    wanted = by_core(network, model.model.latent_format, start, sample_renoise)
    assert max_error(out, wanted) <= 1e-4
    video, audio, *_ = start
    assert max_error(out[0][:, :, :1], video[:, :, :1]) <= 1e-5 and torch.equal(out[1][:, :, :23], audio[:, :, :23])
    plain = MagiHumanSampler.execute(model, [[TEXT, {}]], latent(start), SEED, "auto", 2, 0)[0]["samples"].unbind()
    assert max_error(plain, wanted) > 0.01  # in one piece it is another clip


def test_windows_without_the_first_picture(model, network, start):
    windowed = with_windows(model, WINDOW, OVERLAP, anchor=False)
    out = MagiHumanSampler.execute(windowed, [[TEXT, {}]], latent(start), SEED, "auto", 2, 0)[0]["samples"].unbind()
    form = model.model.latent_format
    assert max_error(out, by_core(network, form, start, sample_renoise, anchor=False)) <= 1e-4
    assert max_error(out, by_core(network, form, start, sample_renoise)) > 0.01


def test_guidance_goes_with_windows(model, network, start):
    guider = sampling.StreamGuider(with_windows(model, WINDOW, OVERLAP), Guidance(), [[TEXT, {}]], [[OTHER, {}]])
    out = sampling.run(guider, sampling.make_sampler("unipc"), flow_sigmas(2), latent(start), SEED)["samples"].unbind()
    assert max_error(out, by_core(network, model.model.latent_format, start, sample_unipc, Guidance())) <= 1e-4


def test_core_ksampler_goes_with_windows(model, network, start):
    """Euler over the same noise levels, written out here, around the core's windows."""
    windowed = with_windows(model, WINDOW, OVERLAP)
    given = latent(start)
    noise = comfy.sample.prepare_noise(given["samples"], SEED)
    out = comfy.samplers.sample(
        windowed, noise, [[TEXT, {}]], [[OTHER, {}]], 1.0, torch.device("cpu"),
        comfy.samplers.sampler_object("euler"), flow_sigmas(3), {**windowed.model_options}, given["samples"],
        given["noise_mask"], disable_pbar=True, seed=SEED).unbind()

    def euler(model, x, sigmas, extra, disable):
        for sigma, after in pairwise(sigmas):
            x0 = model(x, sigma[None])
            x = x0 + after / sigma * (x - x0)
        return x

    wanted = by_core(network, model.model.latent_format, start, euler, steps=3)
    assert max_error(out, wanted) <= 1e-4


def scripted(first: float, second: float) -> list:
    """CONDITIONING of a script of two parts of so many seconds."""
    return [[TEXT, {SCRIPT: Script((Segment(first, "one"), Segment(second, "two")), (TEXT, OTHER))}]]


def test_each_window_follows_its_part_of_a_script(model, network, start):
    """Of windows whose middles are at 0.4, 0.88, 1.36 and 1.52 s."""
    windowed, script = with_windows(model, WINDOW, OVERLAP), scripted(1.0, 0.84)
    out = MagiHumanSampler.execute(windowed, script, latent(start), SEED, "auto", 2, 0)[0]["samples"].unbind()
    wanted = by_core(network, model.model.latent_format, start, sample_renoise,
                     text_for=lambda window: TEXT if window.start < 6 else OTHER)
    assert max_error(out, wanted) <= 1e-4
    assert max_error(out, by_core(network, model.model.latent_format, start, sample_renoise)) > 0.01


def test_windows_take_the_place_of_cores(model, network, start):
    """What a Context Windows node left on the model, such as its noise, has no effect."""
    core = WanContextWindowsManualNode.execute(model, 5, 2, "standard_static", 1, False, "pyramid", True)[0]
    out = [MagiHumanSampler.execute(with_windows(one, WINDOW, OVERLAP), scripted(1.0, 0.84), latent(start), SEED,
                                    "auto", 2, 0)[0]["samples"].unbind() for one in (model, core)]
    assert max_error(*out) == 0


def test_core_context_windows_follow_a_script(model, start):
    windowed = ContextWindowsManualNode.execute(model, 5, 2, "standard_static", 1, False, "pyramid", 2, False)[0]
    seen = []

    def look(executor, x, timestep, context, options, **kwargs):
        window = options["context_window"].index_list
        seen.append((sum(window) / len(window) + 0.5 < 6.25, context.shape[1]))
        return executor(x, timestep, context, options, **kwargs)

    windowed.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "test", look)
    MagiHumanSampler.execute(windowed, scripted(1.0, 0.84), latent(start), SEED, "auto", 1, 0)
    assert set(seen) == {(True, TEXT.shape[1]), (False, OTHER.shape[1])} and len(seen) >= 3


def test_parts_of_a_script_that_no_window_follows_are_named(model, start, caplog):
    """Of windows whose middles are at 0.4, 0.88, 1.36 and 1.52 s."""
    windowed = with_windows(model, WINDOW, OVERLAP)
    MagiHumanSampler.execute(windowed, scripted(0.3, 1.54), latent(start), SEED, "auto", 1, 0)
    assert "No window has its middle in part 1 of the script" in caplog.text
    caplog.clear()
    MagiHumanSampler.execute(windowed, scripted(1.0, 0.84), latent(start), SEED, "auto", 1, 0)
    assert "No window" not in caplog.text


def test_a_script_of_another_length_is_refused(model, start):
    with pytest.raises(InputError, match=r"last 3 s together, but the clip has 1.84 s"):
        MagiHumanSampler.execute(model, scripted(1.0, 2.0), latent(start), SEED, "auto", 1, 0)


def test_a_script_without_windows_is_said_to_be_used_in_its_middle(model, start, caplog):
    kept = latent(start)
    out = MagiHumanSampler.execute(model, scripted(0.6, 1.24), kept, SEED, "auto", 1, 0)[0]["samples"].unbind()
    assert "made in one piece" in caplog.text
    wanted = MagiHumanSampler.execute(model, [[OTHER, {}]], kept, SEED, "auto", 1, 0)[0]["samples"].unbind()
    assert max_error(out, wanted) == 0


def test_what_a_node_makes_of_a_scripts_text_is_used(model, start, caplog):
    zeroed = nodes.ConditioningZeroOut().zero_out(scripted(0.6, 1.24))[0]
    kept = latent(start)
    out = MagiHumanSampler.execute(model, zeroed, kept, SEED, "auto", 1, 0)[0]["samples"].unbind()
    wanted = MagiHumanSampler.execute(model, [[torch.zeros_like(TEXT), {}]], kept, SEED, "auto", 1, 0)[0]
    assert max_error(out, wanted["samples"].unbind()) == 0 and "changed the conditioning" in caplog.text


def test_a_short_clip_is_made_as_without_windows(model, plain):
    assert max_error(small_clip.sample(with_windows(model, WINDOW, OVERLAP)), plain) == 0


def test_memory_and_evaluations_are_those_of_windows(model, start, monkeypatch):
    """The network never sees more than a window, and is spared those of which all is kept."""
    windowed = with_windows(model, WINDOW, OVERLAP)
    seen, asked = [], []

    def look(executor, x, *args, **kwargs):
        seen.append((x[0].shape[2], x[1].shape[2]))
        return executor(x, *args, **kwargs)

    def count(executor, model, noise_shape, *args, **kwargs):
        asked.append(noise_shape)
        return executor(model, noise_shape, *args, **kwargs)

    kinds = comfy.patcher_extension.WrappersMP
    windowed.add_wrapper_with_key(kinds.DIFFUSION_MODEL, "test", look)
    windowed.add_wrapper_with_key(kinds.PREPARE_SAMPLING, "test", count)
    video, audio, video_mask, audio_mask = start
    video_mask[:, :, :6], audio_mask[:, :, :23] = 0, 0  # the windows at 0 and at 3 to 8, 6 to 11, and 7 to 12
    kept = {"samples": nested([video, audio]), "noise_mask": nested([video_mask, audio_mask])}
    out = MagiHumanSampler.execute(windowed, [[TEXT, {}]], kept, SEED, "auto", 1, 0)[0]["samples"].unbind()
    assert seen == [(5, 19)] * 3
    assert list(asked[0]) == [1, 1, 48 * 5 * 24 + 64 * 19]
    assert max_error(out[0][:, :, :6], video[:, :, :6]) <= 1e-5


def test_the_length_is_that_of_the_models_file(distilled, model):
    assert model.model.window == 5.0
    handler = with_windows(model, 0.0, 0.8).model_options["context_handler"]
    assert (handler.frames, handler.overlap) == (32, 5)


def test_windows_must_be_longer_than_their_overlap(model):
    with pytest.raises(InputError, match="3 latent frames cannot overlap by 5"):
        with_windows(model, 0.4, 0.8)
