"""Widths in multiples of 16: wider by zeros, with the same outputs."""

from dataclasses import replace

import pytest
import torch

from magihuman_core import load_dit
from magihuman_core.checkpoint.assign import assign_weights
from magihuman_core.checkpoint.quantized import as_quantized
from magihuman_core.model.config import RELEASED
from magihuman_core.model.dit import MagiHumanDiT
from magihuman_core.weights.align import aligned
from magihuman_core.weights.dit_keys import network_config, official_state_dict, split_official
from magihuman_core.weights.open import open_checkpoint

from .golden import outputs, small_model
from .test_weights_layouts import fp8, fp8_split, quanto


@pytest.fixture(scope="module")
def odd() -> dict:
    """A network whose inner widths are not multiples of 16."""
    config = replace(network_config(open_checkpoint(small_model("network"), "network")), gelu_width=20, swiglu_width=52)
    torch.manual_seed(0)
    dit = MagiHumanDiT(config)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return {key: tensor.detach() for key, tensor in official_state_dict(dit).items()}


@pytest.mark.parametrize("write", [dict, quanto, fp8_split])
def test_the_wider_network_gives_the_same(write, odd):
    stored = write(odd)
    checkpoint = open_checkpoint(stored, "network")
    config = network_config(checkpoint)
    tensors, wider = aligned(split_official(checkpoint, config), config)
    assert (wider.gelu_width, wider.swiglu_width) == (32, 64)
    dit = MagiHumanDiT(wider, device="meta")
    assign_weights(dit, tensors, dtype=torch.float32)
    torch.testing.assert_close(outputs(dit), outputs(load_dit(stored, dtype=torch.float32)), rtol=1e-5, atol=1e-5)
    if write is not dict:  # what was quantized stays so
        data = [as_quantized(tensors.entries[key]) for key in tensors if ".mlp." in key and "norm" not in key]
        assert data and all(entry is not None and entry.data.read().shape == entry.shape for entry in data)


def test_parts_with_one_scale_still_have_one(odd):
    stacked = {key: value for key, value in odd.items() if key.startswith("block.layers.0.mlp.")}
    stored = fp8(odd, "{stem}.weight_scale") | fp8(stacked, "{stem}.weight_scale", groups=3)
    checkpoint = open_checkpoint(stored, "network")
    config = network_config(checkpoint)
    tensors, _ = aligned(split_official(checkpoint, config), config)
    for key in tensors:
        if "experts.audio.mlp" in key and "norm" not in key:
            scale = as_quantized(tensors.entries[key]).scale.read()
            assert scale.unique().numel() == 1 and float(scale.flatten()[0]) > 0


def test_the_released_widths():
    wider = aligned(open_checkpoint({}), RELEASED)[1]
    assert (wider.gelu_width, wider.swiglu_width) == (20480, 13664)
    assert aligned(open_checkpoint({}), wider)[1] == wider
