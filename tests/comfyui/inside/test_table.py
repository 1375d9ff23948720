"""A table of core's nodes, samplers and schedulers around our MODEL, each with what is to come of it.

same: as without it, since it looks for parts that other models have, or is set to do nothing; other: something else,
as sane as before; or words of the error: where a node asks for parts of a U-Net (FreeU, Self-Attention Guidance) or
takes the first dimension for time (the guidance of Stable Video Diffusion). Guiders, sigmas, masks and latents have
tables of their own, test_table_*.py, and nodes of community packs theirs, test_with_packs.py.
"""

import importlib
import importlib.util

import comfy.samplers
import pytest
import torch
from magihuman_pack.magihuman_core.errors import InputError
from test_mixed import base, in_parts, max_error, stock  # noqa: F401  base is a fixture

SAME, OTHER = "same", "other"
PATCHES = {
    # (module, node): [(arguments after the model, what is to come of it)]
    ("apg", "APG"): [((0.5, 1.0, 0.5), OTHER)],
    ("attention_multiply", "UNetSelfAttentionMultiply"): [((1.0, 1.0, 1.0, 1.0), SAME)],
    ("attention_multiply", "UNetCrossAttentionMultiply"): [((1.0, 1.0, 1.0, 1.0), SAME)],
    ("cfg", "CFGZeroStar"): [((), OTHER)],
    ("cfg", "CFGNorm"): [((0.5,), OTHER)],
    ("custom_sampler", "CFGOverride"): [((3.0, 0.0, 1.0), SAME), ((1.0, 0.0, 1.0), OTHER)],
    ("differential_diffusion", "DifferentialDiffusion"): [((1.0,), SAME)],
    ("easycache", "EasyCacheNode"): [((0.0, 0.15, 0.95, False), SAME)],
    ("easycache", "LazyCacheNode"): [((0.0, 0.15, 0.95, False), SAME)],
    ("eps", "EpsilonScaling"): [((1.0,), SAME), ((1.05,), OTHER)],
    ("eps", "TemporalScoreRescaling"): [((0.95, 1.0), OTHER)],
    ("freelunch", "FreeU"): [((1.3, 1.4, 0.9, 0.2), "network is a transformer. Take off the node")],
    ("freelunch", "FreeU_V2"): [((1.3, 1.4, 0.9, 0.2), "network is a transformer. Take off the node")],
    ("fresca", "FreSca"): [((1.0, 1.0, 20), SAME), ((1.0, 1.25, 1), OTHER)],
    ("hypertile", "HyperTile"): [((256, 2, 0, False), SAME)],
    ("lumina2", "RenormCFG"): [((100.0, 0.5), OTHER)],
    ("mahiro", "Mahiro"): [((), OTHER)],
    ("model_advanced", "ModelSamplingSD3"): [((5.0,), SAME), ((3.0,), OTHER)],
    ("model_advanced", "ModelSamplingFlux"): [((1.15, 0.5, 64, 96), OTHER)],
    ("model_advanced", "RescaleCFG"): [((0.0,), SAME), ((0.7,), OTHER)],
    ("model_advanced", "ModelComputeDtype"): [(("fp32",), SAME)],
    ("model_downscale", "PatchModelAddDownscale"): [((3, 2.0, 0.0, 0.35, True, "bicubic", "bicubic"), SAME)],
    ("nag", "NAGuidance"): [((5.0, 0.5, 1.5), SAME)],
    ("nop", "wanBlockSwap"): [((), SAME)],
    ("pag", "PerturbedAttentionGuidance"): [((3.0,), SAME)],
    ("rope", "ScaleROPE"): [((1.0, 0.0, 1.0, 0.0, 1.0, 0.0), SAME)],
    ("sag", "SelfAttentionGuidance"): [((0.5, 2.0), "network is a transformer. Take off the node")],
    ("sd3", "SkipLayerGuidanceSD3"): [(("2, 3", 3.0, 0.0, 1.0), OTHER)],
    ("slg", "SkipLayerGuidanceDiT"): [((3.0, 0.0, 1.0, "2, 3", "2, 3", 0.0), OTHER)],
    ("tcfg", "TCFG"): [((), OTHER)],
    ("tomesd", "TomePatchModel"): [((0.3,), SAME)],
    ("video_model", "VideoLinearCFGGuidance"): [((1.0,), "sets how guidance is computed, and makes")],
    ("video_model", "VideoTriangleCFGGuidance"): [((1.0,), "sets how guidance is computed, and makes")],
}
ROWS = [(*node, arguments, outcome) for node, rows in PATCHES.items() for arguments, outcome in rows]


def patched(model, module: str, name: str, arguments: tuple):
    """A model after a node of core's, of either kind of node."""
    try:
        node = getattr(importlib.import_module(f"comfy_extras.nodes_{module}"), name)
    except (ImportError, AttributeError):
        pytest.skip(f"this ComfyUI has no node {name}")
    made = node.execute(model, *arguments) if hasattr(node, "execute") else getattr(node(), node.FUNCTION)(
        model, *arguments)
    return made[0]


def assert_sane(clip, wanted) -> None:
    """Finite, and neither silent nor blown up beside a plain one."""
    for got, plain in zip(clip, wanted, strict=True):
        assert got.shape == plain.shape and bool(torch.isfinite(got).all())
        assert 0.1 < got.std() / plain.std() < 10


@pytest.fixture(scope="module")
def plain_clip(base):  # noqa: F811
    return stock(base)


@pytest.mark.parametrize(("module", "name", "arguments", "outcome"), ROWS)
def test_a_node_that_patches_the_model(base, plain_clip, module, name, arguments, outcome):  # noqa: F811
    try:
        got = stock(patched(base, module, name, arguments))
    except InputError as error:
        assert outcome not in (SAME, OTHER) and outcome in str(error)
        return
    if outcome == SAME:
        assert max_error(got, plain_clip) < 1e-4
    else:
        assert outcome == OTHER and max_error(got, plain_clip) > 1e-4
        assert_sane(got, plain_clip)


def test_patches_leave_the_model_itself_alone(base, plain_clip):  # noqa: F811
    assert max_error(stock(base), plain_clip) == 0


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_a_sampler(base, plain_clip, sampler):  # noqa: F811
    assert_sane(stock(base, sampler=sampler), plain_clip)


@pytest.mark.parametrize("scheduler", comfy.samplers.SCHEDULER_NAMES)
def test_a_scheduler(base, plain_clip, scheduler):  # noqa: F811
    sigmas = comfy.samplers.calculate_sigmas(base.get_model_object("model_sampling"), scheduler, 4)
    assert bool(torch.isfinite(sigmas).all()) and sigmas[-1] == 0 and 0.5 < sigmas[0] <= 1
    assert_sane(in_parts(base, comfy.samplers.sampler_object("euler"), sigmas), plain_clip)
