"""The drawn clips of `training/`: the same from the same seed, readable by the measures, which can fail."""

from itertools import pairwise

import numpy as np
import pytest

from training import measure
from training.captions import make_caption, split_words, spoken_line, vocabulary
from training.clips import CHOICES, make_clip
from training.voice import SYLLABLES

SEEDS = (500, 501, 502, 503, 505, 506, 507, 508)


@pytest.fixture(scope="module")
def clips():
    return [make_clip(seed) for seed in SEEDS]


def test_sizes_and_types(clips):
    for clip in clips:
        assert clip.video.shape == (49, 128, 128, 3)
        assert clip.video.dtype == np.uint8
        assert clip.audio.shape == (2, 51 * 2048)
        assert clip.audio.dtype == np.float32
        assert 0.1 < np.abs(clip.audio).max() < 1.0
        assert clip.mouth_opening.shape == (49,)
        assert 3 <= len(clip.syllables) <= 6
        ends = [end for _, _, end in clip.syllables]
        assert all(end < start for end, (_, start, _) in zip(ends, clip.syllables[1:], strict=False))
        assert ends[-1] <= 49 / 25


def test_same_seed_same_clip_other_seed_other_clip(clips):
    again = make_clip(SEEDS[0])
    np.testing.assert_array_equal(again.video, clips[0].video)
    np.testing.assert_array_equal(again.audio, clips[0].audio)
    assert again.caption == clips[0].caption
    assert not np.array_equal(clips[0].video, clips[1].video)


def test_another_take_shows_the_same_person_who_says_something_else(clips):
    take = make_clip(SEEDS[1], scene_seed=SEEDS[0])
    seen = [measure.read_attributes(video) for video in (take.video, clips[0].video)]
    assert seen[0] == seen[1]
    assert take.syllables == clips[1].syllables
    still = np.abs(take.video.astype(float) - clips[0].video).mean(axis=(0, 3))[90:, :20]
    assert still.max() < 3, "nothing but the mouth and a small nod differs"


def test_pauses_may_be_asked_for():
    for seed in SEEDS:
        clip = make_clip(seed, seconds=4, quiet=0.5, with_video=False)
        assert sum(end - start for _, start, end in clip.syllables) < 2.4


def test_twice_the_size_is_the_same_scene_but_sharper(clips):
    large = make_clip(SEEDS[0], 256)
    small = large.video.reshape(49, 128, 2, 128, 2, 3).mean(axis=(2, 4))
    np.testing.assert_array_equal(large.audio, clips[0].audio)
    assert measure.psnr(small, clips[0].video) > 34
    upscaled = clips[0].video.repeat(2, axis=1).repeat(2, axis=2)
    assert measure.psnr(upscaled, large.video) < 32


@pytest.mark.parametrize("size", [(160, 96), (96, 160)])
def test_portraits_and_landscapes_are_read_like_squares_and_twice_the_size_is_the_same_scene(size):
    for seed in SEEDS[:3]:
        clip = make_clip(seed, *size)
        assert clip.video.shape == (49, *size, 3)
        assert measure.attribute_accuracy(measure.read_attributes(clip.video), clip.attributes) == 1.0
        assert measure.sync(clip.video, clip.audio) > 0.93
    large = make_clip(SEEDS[0], *(2 * side for side in size), seconds=1).video
    small = large.reshape(len(large), size[0], 2, size[1], 2, 3).mean(axis=(2, 4))
    assert measure.psnr(small, make_clip(SEEDS[0], *size, seconds=1).video) > 34


@pytest.mark.parametrize(("seconds", "frames", "tokens"), [(2, 49, 51), (3, 73, 76), (4, 101, 101), (6, 149, 151)])
def test_clips_are_as_long_as_the_model_makes_them(seconds, frames, tokens):
    clip = make_clip(1, seconds=seconds, with_video=False)
    assert len(clip.mouth_opening) == frames and clip.audio.shape[1] == tokens * 2048
    assert 1.0 * seconds <= len(clip.syllables) <= 3.2 * seconds


def test_some_clips_have_pauses_anywhere_and_voices_differ():
    clips = [make_clip(seed, seconds=4, with_video=False) for seed in range(900, 940)]
    gaps = []
    for clip in clips:
        edges = [0.0, *(edge for _, *span in clip.syllables for edge in span), len(clip.mouth_opening) / 25]
        gaps.append(np.diff(edges)[::2])  # before the first, between, after the last
    assert 10 <= sum(gap.max() > 0.5 for gap in gaps) <= 35
    assert any(gap[0] > 0.4 for gap in gaps) and any(gap[-1] > 0.8 for gap in gaps)
    women = [measure.read_pitch(c.audio) for c in clips if c.attributes["person"] == "woman"]
    assert max(women) / min(women) > 1.12
    assert [measure.read_person(c.audio) for c in clips] == [c.attributes["person"] for c in clips]


def test_mouth_and_sound_go_together_and_shifted_sound_does_not(clips):
    together = [measure.sync(c.video, c.audio) for c in clips]
    assert min(together) > 0.93
    assert abs(np.mean([measure.shifted_sync(c.video, c.audio) for c in clips])) < 0.15
    foreign = [measure.sync(a.video, b.audio) for a, b in pairwise(clips)]
    assert np.mean(foreign) < 0.5
    for clip in clips:
        assert np.corrcoef(measure.mouth_opening(clip.video), clip.mouth_opening)[0, 1] > 0.95


def test_a_still_picture_and_silence_score_nothing(clips):
    still = clips[0].video[:1].repeat(49, axis=0)
    assert measure.sync(still, clips[0].audio) == 0.0
    assert measure.sync(clips[0].video, np.zeros_like(clips[0].audio)) == 0.0
    assert measure.read_syllables(np.zeros_like(clips[0].audio)) == []
    noise = np.random.default_rng(0).normal(0.0, 0.1, clips[0].audio.shape)
    asked = [[name for name, _, _ in c.syllables] for c in clips]
    assert measure.syllable_error_rate([measure.read_syllables(noise)] * len(clips), asked) > 0.7


def test_what_was_said_can_be_read_from_sound_and_prompt(clips):
    asked = [[name for name, _, _ in c.syllables] for c in clips]
    read = [measure.read_syllables(c.audio) for c in clips]
    assert measure.syllable_error_rate(read, asked) <= 0.05
    assert measure.syllable_error_rate(read, asked[1:] + asked[:1]) > 0.5
    assert [spoken_line(c.caption) for c in clips] == asked
    assert [measure.read_person(c.audio) for c in clips] == [c.attributes["person"] for c in clips]


@pytest.mark.parametrize("person", CHOICES["person"])
def test_every_syllable_is_read_back_from_every_voice(person):
    for words in (SYLLABLES[:5], SYLLABLES[5:]):
        clip = make_clip(7, attributes={"person": person}, words=words, with_video=False)
        assert measure.read_syllables(clip.audio) == list(words)


def test_attributes_are_read_from_the_picture(clips):
    read = [measure.read_attributes(c.video) for c in clips]
    asked = [c.attributes for c in clips]
    assert measure.attribute_accuracy(read, asked) == 1.0
    assert measure.attribute_accuracy(read, asked[1:] + asked[:1]) < 0.6


def test_asked_for_attributes_are_drawn():
    asked = {"hair": "red", "hairstyle": "long", "shirt": "green", "wall": "cream", "glasses": "glasses"}
    clip = make_clip(3, attributes=asked, words=["ma", "so"])
    assert measure.attribute_accuracy(measure.read_attributes(clip.video), asked) == 1.0
    assert spoken_line(clip.caption) == ["ma", "so"]
    with pytest.raises(ValueError, match="unknown"):
        make_clip(3, attributes={"hair": "invisible"})
    with pytest.raises(ValueError, match="syllables"):
        make_clip(3, words=["xyz"])


def test_captions_keep_to_three_parts_and_a_closed_vocabulary(clips):
    known = set(vocabulary())
    assert len(known) <= 400
    for clip in clips:
        body, dialogue, sound = clip.caption.split("\n\n")
        line = " ".join(name for name, _, _ in clip.syllables)
        assert f'"{line}"' in body
        assert dialogue.startswith("Dialogue:\n<a ")
        assert f'{clip.attributes["language"]}>: "{line}"' in dialogue
        assert sound == "Background Sound:\n<No prominent background sound>"
        assert set(split_words(clip.caption)) <= known
    phrasings = {make_caption(clips[0].attributes, ["ma"], k) for k in range(3)}
    assert len(phrasings) == 3


def test_sharpness_and_variety_tell_blurred_and_equal_clips(clips):
    video = clips[0].video
    across = video[:, :, :-1] / 2 + video[:, :, 1:] / 2
    blurred = across[:, :-1] / 2 + across[:, 1:] / 2  # means of 2x2 pixels
    assert measure.sharpness(blurred) < 0.8 * measure.sharpness(video)
    same, different = measure.variety([video, video]), measure.variety([video, clips[1].video])
    assert same["picture"] == 0.0
    assert abs(same["movement"]) < 1e-6
    assert different["picture"] > 20.0
