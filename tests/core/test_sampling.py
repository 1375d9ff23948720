"""Schedules, solvers, guidance and super-resolution preparation against the recorded trajectories."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from magihuman_core import Guidance, InputError, flow_sigmas, pack_latents, sample_renoise, sample_unipc, unpack_latents
from magihuman_core.sampling.denoiser import video_scales
from magihuman_core.sampling.frozen import (
    apply_frozen,
    empty_latent,
    keep_audio,
    keep_start,
    overlap_frames,
)
from magihuman_core.sampling.noise import start_noise, step_noise
from magihuman_core.sampling.regenerate import keep_still
from magihuman_core.sampling.super_resolution import prepare_super_resolution, zero_snr_table

from .golden import DATA

UNIPC = sorted(p.stem for p in (DATA / "scheduler").glob("unipc_*.safetensors"))
RENOISE = sorted(p.stem for p in (DATA / "scheduler").glob("ddim_*.safetensors"))


def recorded_model(velocities, sigmas):
    """The recorded velocities, played back as estimates of the clean vector."""
    steps = iter(range(len(velocities)))

    def model(x, sigma, **_):
        i = next(steps)
        assert float(sigma[0]) == float(sigmas[i])
        return x - sigmas[i] * velocities[i].reshape(x.shape)

    return model


def test_sigmas():
    t = load_file(DATA / "scheduler" / "sigmas.safetensors")
    names = [k for k in t if k.endswith(".sigmas")]
    assert len(names) == 24
    for name in names:
        steps, shift = re.match(r"steps(\d+)_shift([\d.]+)\.sigmas", name).groups()
        sigmas = flow_sigmas(int(steps), float(shift))
        torch.testing.assert_close(sigmas, t[name], atol=1.2e-7, rtol=0)
        integer = (1000 * sigmas[:-1].double()).long()
        assert torch.equal(integer, t[name.replace(".sigmas", ".timesteps")].long())


@pytest.mark.parametrize("case", UNIPC)
def test_unipc_trajectory(case):
    t = load_file(DATA / "scheduler" / f"{case}.safetensors")
    x = t["x_init"]
    seen = []
    out = sample_unipc(
        recorded_model(t["v"], t["sigmas"]), x.reshape(1, 1, -1), t["sigmas"],
        callback=lambda state: seen.append(state["x"]), disable=True,
    )  # fmt: skip
    for i, step in enumerate([*seen[1:], out]):
        torch.testing.assert_close(step.reshape(x.shape), t["x_after"][i], atol=2e-6, rtol=0)


@pytest.mark.parametrize("case", RENOISE)
def test_renoise_trajectory(case):
    t = load_file(DATA / "scheduler" / f"{case}.safetensors")
    x, noise = t["x_init"], iter(t["noise"])
    out = sample_renoise(
        recorded_model(t["v"], t["sigmas"]), x.reshape(1, 1, -1), t["sigmas"],
        disable=True, noise_sampler=lambda *_: next(noise).reshape(1, 1, -1),
    )  # fmt: skip
    torch.testing.assert_close(out.reshape(x.shape), t["x_after"][-1], atol=2e-6, rtol=0)


@pytest.mark.parametrize("solver", [sample_unipc, sample_renoise])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_solvers_find_a_constant_solution(solver, steps):
    clean = torch.randn(1, 1, 20)
    x = solver(lambda x, sigma, **_: clean, torch.randn(1, 1, 20), flow_sigmas(steps), {"seed": 3}, disable=True)
    assert torch.equal(x, clean)


def test_unipc_converges_on_a_known_flow():
    """x0 ~ N(0, 0.25): the exact flow only scales x, and more steps must come closer to it."""
    var = 0.25

    def model(x, sigma, **_):
        s = sigma[0]
        return x * ((1 - s) * var / ((1 - s) ** 2 * var + s**2))

    def marginal(s):
        return ((1 - s) ** 2 * var + s**2) ** 0.5

    x = torch.linspace(-2, 2, 9).reshape(1, 1, -1)
    errors = []
    for steps in (8, 32):
        sigmas = torch.linspace(3, -3, steps + 1).sigmoid()  # even steps of the log signal-to-noise ratio
        exact = x * marginal(float(sigmas[-1])) / marginal(float(sigmas[0]))
        errors.append(float((sample_unipc(model, x, sigmas, disable=True) - exact).abs().max()))
    assert errors[1] < errors[0] / 8  # second order: 4 times the steps, about a sixteenth of the error
    assert errors[1] < 1e-3


def test_unipc_takes_pure_noise_and_partial_schedules():
    sigmas = torch.tensor([1.0, 0.9, 0.5, 0.2])
    x = sample_unipc(lambda x, sigma, **_: x * 0.1, torch.randn(1, 1, 8), sigmas, disable=True)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("sigmas", [[1.0], [0.5, 0.5, 0.0], [0.2, 0.9], [2.0, 1.0]])
def test_bad_sigmas_and_steps(sigmas):
    with pytest.raises(InputError, match="sigmas"):
        sample_unipc(lambda x, s: x, torch.zeros(1, 1, 4), torch.tensor(sigmas), disable=True)
    with pytest.raises(InputError, match="steps is 0"):
        flow_sigmas(0)


def test_step_noise_repeats_and_differs_from_the_start_noise():
    x = torch.zeros(1, 1, 50)
    first, second = step_noise(x, 5), step_noise(x, 5)
    assert torch.equal(first(0, 0), second(0, 0))
    start, _ = start_noise((x.shape, (1, 2, 3)), 5)
    assert not torch.equal(step_noise(x, 5)(0, 0), start)
    assert torch.isfinite(step_noise(x, 2**64 - 1)(0, 0)).all()  # ComfyUI's largest seed


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "7"])
def test_bad_seed(seed):
    with pytest.raises(InputError, match="seed is"):
        start_noise(((1, 1, 1, 2, 2), (1, 1, 1)), seed)


def test_guidance_scales():
    def scales(guidance, sigma, frames):
        return video_scales(guidance, sigma, frames).flatten().tolist()

    assert scales(Guidance(), 0.5015, 3) == [5.0, 5.0, 5.0]  # timestep 501
    assert scales(Guidance(), 0.5005, 3) == [2.0, 2.0, 2.0]  # timestep 500
    assert Guidance().audio == 5.0
    assert scales(Guidance(3.5, 3.5, first_frames=2), 0.9, 4) == [2.0, 2.0, 3.5, 3.5]
    assert scales(Guidance(1, 1, 1), 0.9, 2) == [1.0, 1.0]  # whole numbers too
    assert scales(Guidance(1.5, 1.5, first_frames=2), 0.9, 3) == [1.5, 1.5, 1.5]
    assert video_scales(Guidance(), 0.9, 2).shape == (2, 1, 1)


def test_pack_is_the_order_comfyui_has():
    video, audio = torch.randn(2, 3, 2, 4, 6), torch.randn(2, 5, 7)
    x, shapes = pack_latents(video, audio)
    assert x.shape == (2, 1, 3 * 2 * 4 * 6 + 5 * 7)
    assert torch.equal(x[0, 0, :144], video[0].flatten()) and torch.equal(x[1, 0, 144:], audio[1].flatten())
    back = unpack_latents(x, shapes)
    assert torch.equal(back[0], video) and torch.equal(back[1], audio)


def test_frozen_content_keeps_values_to_the_bit_and_blends_between():
    stream, values = torch.randn(1, 2, 3), torch.full((1, 2, 3), float(torch.pi))
    mask = torch.tensor([0.0, 1.0, 0.5])
    out = apply_frozen(stream, (values, mask))
    assert torch.equal(out[..., 0], values[..., 0]) and torch.equal(out[..., 1], stream[..., 1])
    torch.testing.assert_close(out[..., 2], (stream + values)[..., 2] / 2)
    assert torch.equal(apply_frozen(torch.full((1, 2, 3), torch.nan), (values, torch.zeros(1))), values)


def test_zero_snr_table():
    expected = load_file(DATA / "zerosnr" / "table1000.safetensors")
    (values,) = expected.values()
    table = zero_snr_table()
    torch.testing.assert_close(table, values, atol=1e-6, rtol=0)
    assert float(table[220]) == pytest.approx(0.8389104, abs=1e-6) and float(table[-1]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [({"noise_level": -1}, "noise_level"), ({"noise_level": 1000}, "noise_level"),
     ({"video_noise": None}, "video_noise has shape"),
     ({"video_noise": torch.zeros(1, 2, 1, 4, 3)}, "video_noise has shape")],
)  # fmt: skip
def test_bad_super_resolution_input(change, message):
    noises = {"video_noise": torch.zeros(1, 2, 1, 4, 4), "audio_noise": torch.zeros(1, 2, 3)} | change
    with pytest.raises(InputError, match=message):
        prepare_super_resolution(torch.zeros(1, 2, 1, 2, 2), torch.zeros(1, 2, 3), 4, 4, **noises)


def test_there_are_records_for_the_trajectories():
    """The copies must hold what the trajectories need, so that the tests above cannot pass on nothing."""
    assert len(UNIPC) >= 5 and len(RENOISE) == 2
    for case in UNIPC + RENOISE:
        assert json.loads((DATA / "scheduler" / f"{case}.json").read_text())["kind"] in ("unipc", "ddim")


# What a clip starts from


def clip_latent():
    return empty_latent(96, 64, 11, (3, 2))


def test_an_empty_latent_has_nothing_frozen():
    latent = clip_latent()
    assert latent.video.shape == (1, 3, 3, 4, 6) and latent.audio.shape == (1, 2, 11)
    assert latent.frozen_video is None and latent.frozen_audio is None


def test_a_reference_image_is_latent_frame_0():
    image = torch.randn(1, 3, 1, 4, 6)
    latent = keep_still(clip_latent(), 0, image)
    assert torch.equal(latent.video[:, :, :1], image) and not latent.video[:, :, 1:].any()
    assert latent.video_mask.flatten(2).amax(1)[0, :: 4 * 6].tolist() == [0, 1, 1]
    assert latent.frozen_audio is None


@pytest.mark.parametrize(("length", "frames"), [(5, 2), (11, 3), (17, 5)])
def test_driving_audio_gives_the_length(length, frames):
    image, audio = torch.randn(1, 3, 1, 4, 6), torch.randn(1, 2, length)
    latent = keep_audio(keep_still(clip_latent(), 0, image), audio)
    assert torch.equal(latent.audio, audio) and not latent.audio_mask.any()
    assert latent.video.shape == (1, 3, frames, 4, 6) and torch.equal(latent.video[:, :, :1], image)
    assert latent.video_mask[0, 0, :, 0, 0].tolist() == [0] + [1] * (frames - 1)


def test_a_clip_is_extended_from_its_last_whole_latent_frames():
    assert overlap_frames(1.0, 100) == 25
    assert overlap_frames(0.3, 100) == 5  # of 8 frames
    assert overlap_frames(1.0, 7) == 5  # as far as the clip goes
    with pytest.raises(InputError, match="shorter than one frame"):
        overlap_frames(1.0, 0)

    video, audio = torch.randn(1, 3, 2, 4, 6), torch.randn(1, 2, 7)
    latent = keep_start(clip_latent(), video, audio)
    assert torch.equal(latent.video[:, :, :2], video) and torch.equal(latent.audio[:, :, :5], audio[:, :, :5])
    assert latent.video_mask[0, 0, :, 0, 0].tolist() == [0, 0, 1]
    assert latent.audio_mask[0, 0].tolist() == [0] * 5 + [1] * 6


@pytest.mark.parametrize("levels", [[1.0], [14.6, 2.0, 0.0], [0.5, 0.5, 0.0]])
def test_noise_levels_that_are_none_are_refused_with_what_gives_them(levels):
    for solve in (sample_unipc, sample_renoise):
        with pytest.raises(InputError, match=r"sigmas are .*MagiHuman Scheduler .* flow_sigmas\(steps\)"):
            solve(None, torch.zeros(1, 1, 4), torch.tensor(levels))
