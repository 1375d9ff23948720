"""Resampling, channels, cross-fades."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from magihuman_core.errors import InputError
from magihuman_core.media.waveform import merge_overlap, resample, to_stereo

HELPERS = Path(__file__).parents[1] / "data" / "helpers"


def rows(name):
    cases = json.loads((HELPERS / f"{name}.json").read_text())["rows"]
    return cases, load_file(HELPERS / f"{name}.safetensors")


def test_resample_vectors():
    cases, tensors = rows("resample")
    for case in cases:
        sound = tensors[f"n{case['n']}.audio"].T[None]                             # [1, 2, n]
        expected = tensors[f"n{case['n']}.out"].T[None]
        result = resample(sound, 51200, 44100)
        assert result.shape == expected.shape and result.dtype == torch.float32
        assert torch.allclose(result, expected, atol=1e-5, rtol=0)


def test_resample_keeps_a_tone_and_its_length():
    for length in (44100, 44101, 8821):
        time = torch.arange(length) / 44100
        result = resample(torch.sin(2 * torch.pi * 440 * time), 44100, 51200)
        assert len(result) == length * 512 // 441
        inner = slice(2000, len(result) - 2000)                  # the ends ring: the tone is not periodic
        wanted = torch.sin(2 * torch.pi * 440 * torch.arange(len(result)) / 51200)
        assert (result - wanted)[inner].abs().max() < 0.02


def test_resample_to_the_same_rate_changes_nothing():
    sound = torch.rand(1, 2, 10)
    assert resample(sound, 48000, 48000) is sound


@pytest.mark.parametrize(("length", "before", "after"), [(10, 0, 44100), (10, 44100, -1), (1, 51200, 44100)])
def test_resample_refuses(length, before, after):
    with pytest.raises(InputError):
        resample(torch.zeros(1, 2, length), before, after)


def test_to_stereo():
    mono, quad = torch.rand(1, 1, 8), torch.rand(1, 4, 8)
    assert torch.equal(to_stereo(mono), mono.expand(1, 2, 8))
    assert torch.equal(to_stereo(quad), quad[:, :2])
    assert torch.equal(to_stereo(quad[:, :2]), quad[:, :2])
    for channels in (3, 5, 6, 8):
        sound = torch.zeros(1, channels, 4)
        sound[:, :3, :3] = torch.eye(3)
        sound[:, 3:, 3] = 1                                      # bass and rear
        expected = torch.tensor([[1, 0, 0.5**0.5, 0], [0, 1, 0.5**0.5, 0]]) / (1 + 0.5**0.5)
        assert torch.allclose(to_stereo(sound)[0], expected)
    assert to_stereo(torch.ones(6, 8)).max() <= 1
    with pytest.raises(InputError):
        to_stereo(torch.rand(1, 0, 8))
    with pytest.raises(InputError):
        to_stereo(torch.rand(8))


def test_merge_overlap_vectors():
    cases, tensors = rows("merge_overlap")
    for index, case in enumerate(cases):
        windows = list(tensors[f"m{index}.chunks"].transpose(-1, -2))              # n times [1, dim, frames]
        merged = merge_overlap(windows, case["overlap_ratio"])
        expected = tensors[f"m{index}.merged"].transpose(-1, -2)
        assert merged.shape == expected.shape
        assert torch.allclose(merged, expected, atol=1e-5, rtol=0)


def test_merge_overlap_by_hand():
    old, new = torch.zeros(1, 6), torch.ones(1, 6)
    expected = torch.tensor([[0, 0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1]])
    assert torch.allclose(merge_overlap([old, new], 0.5), expected)
    assert torch.equal(merge_overlap([old, new], 0), torch.cat((old, new), -1))


def test_merge_overlap_refuses():
    windows = [torch.ones(1, 4), torch.ones(1, 5)]
    for parts, overlap in (([], 0.5), (windows, 0.5), (windows[:1], 1.0)):
        with pytest.raises(InputError):
            merge_overlap(parts, overlap)
