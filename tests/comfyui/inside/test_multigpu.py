"""Core's MultiGPU CFG Split on our MODEL, as far as a CPU can tell: "cpu:1" stands for a second card.

What its Select Device nodes need of MODEL, CLIP and VAE, to be loaded anew for another device, test_encoders.py and
test_model.py hold.
"""

import comfy.model_management as mm
import pytest
import torch
from comfy_extras.nodes_multigpu import MultiGPUCFGSplitNode
from magihuman_pack.nodes.adapter.load_model import load_model
from magihuman_pack.nodes.adapter.streams import nested
from magihuman_pack.nodes.adapter.windows import with_windows
from magihuman_pack.nodes.sampling import MagiHumanSampler
from small_clip import AUDIO, OTHER, TEXT, VIDEO, max_error, random, sample, with_lora

SECOND = torch.device("cpu", 1)
PROJ = "blocks.2.experts.shared.attention.linear_proj"


@pytest.fixture
def used(monkeypatch):
    """A second device is there. The devices that were computed on, in order."""
    devices, first = [], mm.get_torch_device()
    monkeypatch.setattr(mm, "get_all_torch_devices", lambda exclude_current=False: [first, SECOND])
    monkeypatch.setattr(mm, "set_torch_device", devices.append)
    return devices


@pytest.fixture
def base(models):
    return load_model(models / "diffusion_models/magihuman/base", "base", torch.float32)


def split(model):
    """A card for the prompt, and one for the negative prompt."""
    return MultiGPUCFGSplitNode.execute(model, 2).args[0]


def clip_of(model, length=9):
    """[video, audio] by the one node, with guidance."""
    frames = (length + 3) // 4
    empty = {"samples": nested(torch.zeros(1, VIDEO.shape[1], frames, 4, 6), torch.zeros(1, AUDIO.shape[1], length))}
    out = MagiHumanSampler.execute(model, [[TEXT, {}]], empty, 3, "full CFG", 2, 0, negative=[[OTHER, {}]])
    return out.args[0]["samples"].unbind()


def test_prompt_and_negative_prompt_on_a_card_each(base, used):
    expected = clip_of(base)
    both = split(base)
    [clone] = both.get_additional_models_with_key("multigpu")
    assert clone.load_device == SECOND
    own, other = (dict(patcher.model.named_parameters()) for patcher in (both, clone))
    assert own.keys() == other.keys() and all(own[key].data_ptr() != other[key].data_ptr() for key in own)
    used.clear()
    assert max_error(clip_of(both), expected) < 1e-4
    # The threads of both cards begin with it, and each computes one of the two prompts in each of two steps.
    assert sorted(map(str, used)) == ["cpu"] * 3 + ["cpu:1"] * 3


@pytest.mark.parametrize("order", ["before", "after"])
def test_split_with_a_lora(base, used, order):
    weight = base.model.diffusion_model.get_submodule(PROJ).weight
    lora = {f"diffusion_model.{PROJ}.lora_A.weight": random(4, weight.shape[1]),
            f"diffusion_model.{PROJ}.lora_B.weight": random(weight.shape[0], 4)}
    plain, expected = clip_of(base), clip_of(with_lora(base, lora))
    both = split(with_lora(base, lora)) if order == "before" else with_lora(split(base), lora)
    assert max_error(clip_of(both), expected) < 1e-4 < max_error(plain, expected)
    assert SECOND in used


def test_split_in_windows(base, used):
    windowed = with_windows(base, 0.64, 0.32)
    expected = clip_of(windowed, 46)
    assert max_error(clip_of(split(windowed), 46), expected) < 1e-4
    assert SECOND in used


def test_one_condition_needs_one_card(distilled, used):
    model = load_model(distilled, "distilled", torch.float32)
    expected = sample(model)
    assert max_error(sample(split(model)), expected) < 1e-4
