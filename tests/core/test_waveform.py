"""Resampling and channels."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from magihuman_core.errors import InputError
from magihuman_core.media.waveform import resample, to_stereo

HELPERS = Path(__file__).parents[1] / "data" / "helpers"


def test_resample_vectors():
    cases = json.loads((HELPERS / "resample.json").read_text())["rows"]
    tensors = load_file(HELPERS / "resample.safetensors")
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


@pytest.mark.parametrize(("length", "before", "after", "message"), [
    (10, 0, 44100, "rate"), (10, 44100, -1, "rate"), (1, 51200, 44100, "sample")])
def test_resample_refuses(length, before, after, message):
    with pytest.raises(InputError, match=message):
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
    for names in (["FC", "FL", "LFE", "FR"], ["FC", "LFE"]):
        assert torch.equal(to_stereo(quad[:, : len(names)], names)[..., 0, :] > 0, torch.ones(1, 8, dtype=torch.bool))
        assert not to_stereo(torch.tensor([[[0.0] if name != "LFE" else [1.0] for name in names]]), names).any()
    for shape in ((1, 0, 8), (8,)):
        with pytest.raises(InputError, match="channels"):
            to_stereo(torch.rand(shape))
