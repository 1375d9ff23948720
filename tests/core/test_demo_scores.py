"""The demo weights still do what their card says: a small sample of training/evaluate.py, well below its scores."""

import pytest
import torch

from training.clips import make_clip
from training.demo import Demo, from_pixels, to_pixels
from training.evaluate import scores
from training.files import DEMO
from training.measure import psnr

CLIPS = 3


@pytest.fixture(scope="module")
def demo():
    torch.set_num_threads(1)
    return Demo(DEMO)


@pytest.fixture(scope="module")
def made(demo):
    clips = [make_clip(seed) for seed in range(CLIPS)]
    with torch.inference_mode():
        videos, sounds = zip(*[demo.decode(*demo.generate(c.caption, c.seed)) for c in clips], strict=True)
    return clips, list(videos), list(sounds)


def test_distilled_clips_are_what_was_asked_for(made):
    clips, videos, sounds = made
    found = scores(videos, sounds, clips)
    assert found["sync"] > 0.75
    assert abs(found["shifted sync"]) < 0.4
    assert found["attributes"] > 0.9
    assert found["syllable errors"] < 0.3


def test_sound_of_another_clip_is_noticed(made):
    clips, videos, sounds = made
    found = scores(videos, sounds[1:] + sounds[:1], clips)
    assert found["sync"] < 0.5
    assert found["syllable errors"] > 0.6


def test_pictures_come_back_from_the_autoencoder(demo, made):
    clips, _, _ = made
    with torch.inference_mode():
        found = [psnr(to_pixels(demo.turbo.decode(demo.vae.encode(from_pixels(c.video)))), c.video) for c in clips]
    assert sum(found) / CLIPS > 27.5  # dB; 28.9 over the card's twelve clips


def test_weights_fit_the_budget():
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) <= 25_000_000
