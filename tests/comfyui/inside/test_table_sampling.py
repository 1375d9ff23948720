"""A table of core's guiders, noises and sigmas around our MODEL, each with what is to come of it.

As in test_table.py: same as a plain clip, other but as sane, or words of the error.
"""

import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras.nodes_perpneg import PerpNegGuider
from magihuman_pack.nodes import sampling
from magihuman_pack.nodes.adapter.streams import nested
from small_clip import AUDIO, VIDEO, max_error, random, relative_error
from test_mixed import EMPTY, TEXTS, base, run, stock  # noqa: F401  base is a fixture
from test_table import OTHER, SAME, assert_sane

import nodes

POSITIVE, NEGATIVE = TEXTS["positive"], TEXTS["negative"]
THIRD = [[random(1, 5, 32), {}]]
CLIP = {"samples": nested(VIDEO, AUDIO)}  # a finished one
NOISE, NO_NOISE = run(custom.RandomNoise, 7), run(custom.DisableNoise)


def usual_sigmas(model, denoise=1.0, steps=2, scheduler="simple"):
    return run(custom.BasicScheduler, model, scheduler, steps, denoise)


def advanced(model, guider=None, sigmas=None, noise=NOISE, latent=EMPTY, sampler="euler"):
    """SamplerCustomAdvanced, which does what KSampler does unless told otherwise."""
    guider = run(custom.CFGGuider, model, POSITIVE, NEGATIVE, 3.0) if guider is None else guider
    sigmas = usual_sigmas(model) if sigmas is None else sigmas
    return run(custom.SamplerCustomAdvanced, noise, guider, comfy.samplers.sampler_object(sampler), sigmas, latent)


def streams(latent):
    return latent["samples"].unbind()


def ours(model, guidance, scale=3.0, negative=NEGATIVE):
    return run(sampling.MagiHumanGuider, model=model, positive=POSITIVE, negative=negative, guidance=guidance,
               video=scale, video_late=scale, audio=scale, sr_scale=scale)


@pytest.fixture(scope="module")
def plain(base):  # noqa: F811
    """KSampler's clip, with cfg 3."""
    return stock(base)


@pytest.fixture(scope="module")
def unguided(base):  # noqa: F811
    return stock(base, cfg=1.0)


def dual(model, first, second, style):
    return run(custom.DualCFGGuider, model, POSITIVE, NEGATIVE, NEGATIVE, first, second, style)


GUIDERS = {
    # name: (of a model, the clip it is compared with, what is to come of it)
    "CFGGuider": (lambda model: run(custom.CFGGuider, model, POSITIVE, NEGATIVE, 3.0), "plain", SAME),
    "CFGGuider 1": (lambda model: run(custom.CFGGuider, model, POSITIVE, NEGATIVE, 1.0), "unguided", SAME),
    "BasicGuider": (lambda model: run(custom.BasicGuider, model, POSITIVE), "unguided", SAME),
    "ours, full": (lambda model: ours(model, "full CFG"), "plain", SAME),
    "ours, none": (lambda model: ours(model, "none", negative=None), "unguided", SAME),
    "ours, of super-resolution": (lambda model: ours(model, "super-resolution CFG"), "plain", OTHER),
    # Its two conditions being one text, the two scales are one.
    "DualCFGGuider": (lambda model: dual(model, 3.0, 1.0, "regular"), "plain", SAME),
    "DualCFGGuider, nested": (lambda model: dual(model, 3.0, 1.0, "nested"), "plain", SAME),
    "DualCFGGuider, both": (lambda model: dual(model, 2.0, 2.0, "nested"), "plain", OTHER),
    "PerpNegGuider": (lambda model: run(PerpNegGuider, model, POSITIVE, NEGATIVE, NEGATIVE, 3.0, 1.0), "plain", SAME),
    "PerpNegGuider, third text": (
        lambda model: run(PerpNegGuider, model, POSITIVE, NEGATIVE, THIRD, 3.0, 1.0), "plain", OTHER),
}


@pytest.mark.parametrize("name", GUIDERS)
def test_a_guider(base, request, name):  # noqa: F811
    make, wanted, outcome = GUIDERS[name]
    compare(streams(advanced(base, make(base))), request.getfixturevalue(wanted), outcome)


def compare(got, wanted, outcome):
    if outcome == SAME:
        assert max_error(got, wanted) < 1e-4
    else:
        assert max_error(got, wanted) > 1e-4
        assert_sane(got, wanted)


def test_a_schedule_in_two_parts_is_one_schedule(base, plain):  # noqa: F811
    """SplitSigmas at each step, SplitSigmasDenoise, KSampler Advanced: the second part gets no noise.

    Before the first step, too: the first part gives the noise.
    """
    sigmas = usual_sigmas(base, steps=3)
    whole = streams(advanced(base, sigmas=sigmas))
    for split in (*(custom.SplitSigmas.execute(sigmas, step) for step in range(3)),
                  custom.SplitSigmasDenoise.execute(sigmas, 0.7)):
        high, low = split.args
        first = advanced(base, sigmas=high)
        assert max_error(streams(first), whole) > 1e-3
        assert max_error(streams(advanced(base, sigmas=low, noise=NO_NOISE, latent=first)), whole) < 1e-3
    latent = EMPTY
    for add, start, end, left in (("enable", 0, 1, "enable"), ("disable", 1, 2, "disable")):
        latent = nodes.KSamplerAdvanced().sample(base, add, 7, 2, 3.0, "euler", "simple", POSITIVE, NEGATIVE, latent,
                                                 start, end, left)[0]
    assert max_error(streams(latent), plain) < 1e-3


SIGMAS = {
    # name: (sigmas of a model, what is to come of it for a finished clip, beside a clip of full noise)
    "denoise 0": (lambda model: usual_sigmas(model, 0.0), "kept"),
    "denoise 0.3": (lambda model: usual_sigmas(model, 0.3), "near"),
    "SplitSigmasDenoise 0.34": (
        lambda model: custom.SplitSigmasDenoise.execute(usual_sigmas(model, steps=6), 0.34).args[1], "near"),
    "SetFirstSigma": (lambda model: run(custom.SetFirstSigma, usual_sigmas(model, 0.5), 0.4), "near"),
    "ExtendIntermediateSigmas": (
        lambda model: run(custom.ExtendIntermediateSigmas, usual_sigmas(model, 0.3), 2, -1.0, 12.0, "linear"), "near"),
    "FlipSigmas": (lambda model: run(custom.FlipSigmas, usual_sigmas(model)), OTHER),
    "KarrasScheduler": (lambda model: run(custom.KarrasScheduler, 3, 1.0, 0.01, 7.0), OTHER),
    "ManualSigmas": (lambda model: run(custom.ManualSigmas, "1, 0.6, 0.2, 0"), OTHER),
    "beyond one": (lambda model: run(custom.KarrasScheduler, 3, 14.6, 0.03, 7.0), OTHER),
}


@pytest.mark.parametrize("name", SIGMAS)
def test_sigmas(base, plain, name):  # noqa: F811
    make, outcome = SIGMAS[name]
    got = streams(advanced(base, sigmas=make(base), latent=CLIP))
    if outcome == "kept":
        assert max_error(got, [VIDEO, AUDIO]) < 1e-5
    elif outcome == "near":
        assert 1e-3 < relative_error(got, [VIDEO, AUDIO]) < 0.9 * relative_error(plain, [VIDEO, AUDIO])
    else:
        assert all(bool(torch.isfinite(stream).all()) for stream in got)
        assert max_error(got, [VIDEO, AUDIO]) > 1e-2


def test_a_clip_is_led_to_its_noise_and_back(base):  # noqa: F811
    """FlipSigmas without noise, then the way back from there without noise."""
    guider, sigmas = run(custom.BasicGuider, base, POSITIVE), usual_sigmas(base, steps=30)
    noise = advanced(base, guider, run(custom.FlipSigmas, sigmas), NO_NOISE, CLIP)
    back = advanced(base, guider, sigmas, NO_NOISE, noise)
    assert relative_error(streams(noise), [VIDEO, AUDIO]) > 0.5
    assert relative_error(streams(back), [VIDEO, AUDIO]) < 0.3


def test_without_noise_only_the_clip_speaks(base):  # noqa: F811
    """DisableNoise: nothing of the seed is in it."""
    sigmas = usual_sigmas(base, 0.5)
    got = streams(advanced(base, sigmas=sigmas, noise=NO_NOISE, latent=CLIP))
    assert max_error(got, streams(advanced(base, sigmas=sigmas, latent=CLIP))) > 1e-2
    assert all(bool(torch.isfinite(stream).all()) for stream in got)


def test_noise_that_is_added_before_is_that_of_the_sampler(base):  # noqa: F811
    """AddNoise, on a video latent and without noise in the sampler; it cannot add it to two streams, and core says so.

    The sampler takes what it gets for a clean latent, as of each model of flow: only the first sigma's share is seen.
    """
    sigmas = usual_sigmas(base, 0.5)
    video = {"samples": VIDEO}
    noisy = run(custom.AddNoise, base, NOISE, sigmas, video)["samples"]
    assert noisy.shape == VIDEO.shape and bool(torch.isfinite(noisy).all()) and max_error(noisy, VIDEO) > 0.1
    with pytest.raises(ValueError, match="video latent has 16 channels, but this model takes 48"):
        custom.AddNoise.execute(base, NOISE, sigmas, {"samples": random(1, 16, 3, 4, 6)})
    with pytest.raises(TypeError, match="NestedTensor"):
        custom.AddNoise.execute(base, NOISE, sigmas, CLIP)
