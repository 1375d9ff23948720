"""The demo weights still do what their card says: a small sample of training/evaluate.py, well below its scores."""

import pytest
import torch

from training.clips import make_clip
from training.evaluate import DEMO, Demo, scores

CLIPS = 3


@pytest.fixture(scope="module")
def made():
    torch.set_num_threads(1)
    demo = Demo(DEMO)
    clips = [make_clip(seed) for seed in range(CLIPS)]
    with torch.inference_mode():
        videos, sounds = zip(*[demo.decode(*demo.generate(c.caption, c.seed)) for c in clips], strict=True)
    return clips, list(videos), list(sounds)


def test_distilled_clips_are_what_was_asked_for(made):
    clips, videos, sounds = made
    found = scores(videos, sounds, clips)
    assert found["sync"] > 0.7
    assert abs(found["shifted sync"]) < 0.4
    assert found["attributes"] > 0.85
    assert found["syllable errors"] < 0.4


def test_sound_of_another_clip_is_noticed(made):
    clips, videos, sounds = made
    found = scores(videos, sounds[1:] + sounds[:1], clips)
    assert found["sync"] < 0.5
    assert found["syllable errors"] > 0.6


def test_weights_fit_the_budget():
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) <= 25_000_000
