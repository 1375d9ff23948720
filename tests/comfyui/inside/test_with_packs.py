"""Nodes of community packs around our MODEL, where their checkouts lie in ComfyUI's custom_nodes; else skipped by name.

Last of all, since a pack may change ComfyUI itself when it is imported.
"""

import asyncio
import importlib.util
import sys
from pathlib import Path

import comfy.samplers
import folder_paths
import pytest
from magihuman_pack.magihuman_core import flow_sigmas
from server import PromptServer
from test_mixed import base, in_parts, max_error  # noqa: F401  base is a fixture
from test_table import OTHER, SAME, assert_sane

MODEL, SAMPLER = "MODEL", "SAMPLER"  # what a node takes and gives
# folder in custom_nodes: [(node, what it takes, its other inputs, what is to come of it)]
PACKS = {
    "ComfyUI-Detail-Daemon": [
        ("DetailDaemonSamplerNode", SAMPLER, {
            "detail_amount": 0.0, "start": 0.2, "end": 0.8, "bias": 0.5, "exponent": 1.0, "start_offset": 0.0,
            "end_offset": 0.0, "fade": 0.0, "smooth": True, "cfg_scale_override": 0.0}, SAME),
        ("DetailDaemonSamplerNode", SAMPLER, {
            "detail_amount": 0.5, "start": 0.2, "end": 0.8, "bias": 0.5, "exponent": 1.0, "start_offset": 0.0,
            "end_offset": 0.0, "fade": 0.0, "smooth": True, "cfg_scale_override": 0.0}, OTHER),
        ("LyingSigmaSampler", SAMPLER, {"dishonesty_factor": -0.05}, OTHER),
    ],
    "ComfyUI-KJNodes": [
        ("CFGZeroStarAndInit", MODEL, {"use_zero_init": False, "zero_init_steps": 0}, OTHER),
        ("ModelMemoryUsageFactorOverride", MODEL, {"memory_usage_factor": 2.0}, SAME),
        ("ModelPatchTorchSettings", MODEL, {"enable_fp16_accumulation": False}, SAME),
    ],
    "RES4LYF": [("ClownSampler_Beta", None, {"eta": 0.0, "sampler_name": "multistep/res_2m", "seed": 1}, OTHER)],
}
STEPS = 4


def load(pack: str):
    """The pack, imported as ComfyUI would."""
    folder = next((Path(root) / pack for root in folder_paths.get_folder_paths("custom_nodes")
                   if (Path(root) / pack / "__init__.py").is_file()), None)
    if folder is None:
        pytest.skip(f"NO CHECKOUT OF {pack} in ComfyUI/custom_nodes: its nodes are not tried")
    if not hasattr(PromptServer, "instance"):  # to which packs add routes when they are imported
        PromptServer(asyncio.new_event_loop())
    if pack not in sys.modules:
        spec = importlib.util.spec_from_file_location(pack, folder / "__init__.py",
                                                      submodule_search_locations=[str(folder)])
        sys.modules[pack] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[pack])
    return sys.modules[pack]


@pytest.mark.parametrize("pack", PACKS)
def test_a_community_pack(base, pack):  # noqa: F811
    found, euler = load(pack), comfy.samplers.sampler_object("euler")
    plain = in_parts(base, euler, flow_sigmas(STEPS))
    for name, kind, inputs, outcome in PACKS[pack]:
        node = found.NODE_CLASS_MAPPINGS[name]
        run = node.execute if hasattr(node, "execute") else getattr(node(), node.FUNCTION)
        made = run(*{MODEL: [base], SAMPLER: [euler], None: []}[kind], **inputs)[0]
        model, sampler = (made, euler) if kind == MODEL else (base, made)
        got = in_parts(model, sampler, flow_sigmas(STEPS))
        if outcome == SAME:
            assert max_error(got, plain) < 1e-4, name
        else:
            assert max_error(got, plain) > 1e-4, name
            assert_sane(got, plain)
