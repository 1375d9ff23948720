"""Norm, activations and rotary positions against the recorded numbers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from magihuman_core.model.rope import rope_bands, rope_tables, token_coordinates
from magihuman_core.nn.elementwise import apply_rotary, gelu7, swiglu7
from magihuman_core.nn.layers import RMSNorm

DATA = Path(__file__).parents[1] / "data" / "elementary"


@pytest.mark.parametrize("name,function", [("gelu7", gelu7), ("swiglu7", swiglu7)])
def test_activations(name, function):
    t = load_file(DATA / "activations.safetensors")
    torch.testing.assert_close(function(t["x_f32"]), t[f"{name}.f32_in"], atol=1e-5, rtol=1e-6)
    wide = function(t["x_bf16"])
    torch.testing.assert_close(wide, t[f"{name}.bf16_in_f32_out"], atol=1e-5, rtol=1e-6)
    ulp = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(wide.bfloat16(), t[f"{name}.bf16_in"], atol=1e-5, rtol=ulp)


@pytest.mark.parametrize("case", ["m1", "m3"])
@pytest.mark.parametrize("head", ["", "head_"])
def test_rmsnorm(case, head):
    t = load_file(DATA / "rmsnorm.safetensors")
    x = t[f"{case}.x"].unflatten(1, (4, -1)) if head else t[f"{case}.x"]
    copies = t[f"{case}.{head}weight"].chunk(3 if case == "m3" else 1)
    modality = t[f"{case}.modality"] if case == "m3" else torch.zeros(len(x), dtype=torch.long)
    for m, weight in enumerate(copies):
        norm = RMSNorm(len(weight))
        norm.weight.data = weight
        rows = modality == m
        torch.testing.assert_close(norm(x[rows]), t[f"{case}.{head}out_f32"][rows], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("case", ["rope_448x256_5s", "rope_1080p_5s"])
@pytest.mark.parametrize("style", ["v1", "v2"])
def test_rotary_tables(case, style):
    t = load_file(DATA / f"{case}.safetensors")
    sizes = json.loads((DATA / f"{case}.json").read_text())
    grid, audio, text = sizes["patch_grid_THW"], sizes["audio_tokens"], sizes["text_tokens"]
    coordinates = token_coordinates(tuple(grid), audio, text, style)
    video = grid[0] * grid[1] * grid[2]
    assert len(coordinates) == video + audio + text
    rows = t["video.row_index"]
    rest = video + t[f"{style}.audio_text.row_index"]
    assert torch.equal(coordinates[rows], t["video.coords"])
    assert torch.equal(coordinates[rest], t[f"{style}.audio_text.coords"])
    sin, cos = rope_tables(coordinates, rope_bands(sizes["head_dim"] // 8))
    table = torch.cat([sin, cos], 1)
    torch.testing.assert_close(table[rows], t["video.emb"], atol=1e-5, rtol=0)
    torch.testing.assert_close(table[rest], t[f"{style}.audio_text.emb"], atol=1e-5, rtol=0)


def test_apply_rotary():
    t = load_file(DATA / "rope_448x256_5s.safetensors")
    sin, cos = t["rotary.emb_rows"].chunk(2, 1)
    torch.testing.assert_close(apply_rotary(t["rotary.x"], sin, cos), t["rotary.out"], atol=1e-5, rtol=0)


def test_bands():
    t = load_file(DATA / "rope_448x256_5s.safetensors")
    torch.testing.assert_close(rope_bands(16), t["bands"], atol=0, rtol=1e-6)


def test_single_tokens_have_finite_positions():
    """One audio and one text token: extent 1 must not divide by zero."""
    sin, cos = rope_tables(token_coordinates((1, 1, 1), 1, 1, "v2"), rope_bands(2))
    assert torch.isfinite(sin).all() and torch.isfinite(cos).all()
