"""Clips longer than one window: which audio goes with which part of the video, and how windows are joined."""

import pytest
import torch

import magihuman_core as mh
from magihuman_core.recipes import Guidance
from magihuman_core.sampling.denoiser import later_guidance
from magihuman_core.sampling.noise import start_noise
from magihuman_core.sampling.windows import WindowedDenoiser, plan_windows, shared_frames, window_frames
from magihuman_core.sizes import audio_length, latent_frames
from training import measure
from training.clips import make_clip
from training.demo import Demo, from_pixels, to_pixels
from training.files import DEMO

from .golden import small_model


@pytest.fixture(scope="module")
def dit():
    return mh.load_dit(small_model("network"), dtype=torch.float32)


def latents(dit, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    config = dit.config
    video = torch.randn(1, config.video_channels, latent_frames(length), 2, 4, generator=generator)
    return video, torch.randn(1, config.audio_channels, length, generator=generator)


@pytest.mark.parametrize("length", [51, 52, 53, 54, 55, 126, 501, 502, 503, 504])
def test_windows_cover_the_clip_and_hear_what_they_show(length):
    windows = plan_windows(length, window_frames(2), shared_frames(0.8))
    assert (window_frames(2), shared_frames(0.8)) == (13, 5)
    frames = latent_frames(length)
    assert windows.parts[0].start == 0 and windows.parts[0].audio.start == 0
    assert windows.parts[-1].video.stop == frames and windows.parts[-1].audio.stop == length
    for before, after in zip(windows.parts, windows.parts[1:], strict=False):
        assert before.frames == after.frames == 13
        assert before.video.stop - after.start >= 5
        # A latent frame begins with the audio latent that stands at four times its number.
        assert before.audio == slice(4 * before.start, 4 * before.start + audio_length(2))
        assert after.audio.start == 4 * after.start
    sound = torch.arange(length).float()[None, None]
    for window in windows.parts if len(windows.parts) > 1 else ():  # at the end a latent is repeated, or left out
        heard = window.cut_audio(sound)
        assert heard.shape[2] == audio_length(2)
        assert heard.flatten().tolist() == [min(4 * window.start + i, length - 1) for i in range(51)]


def test_a_clip_of_one_window_is_made_as_ever(dit):
    """Equal to the bit, with guidance, two texts, an image and driving audio."""
    video, audio = latents(dit, 22)
    x, shapes = mh.pack_latents(video, audio)
    texts = torch.randn(1, 5, dit.config.text_channels), torch.randn(1, 4, dit.config.text_channels)
    mask = torch.ones(1, 1, video.shape[2], 1, 1)
    mask[:, :, 0] = 0
    frozen = {"frozen_video": (torch.randn_like(video), mask), "frozen_audio": (audio, torch.zeros(1, 1, 1))}
    with torch.inference_mode():
        whole = mh.JointDenoiser(dit, shapes, *texts, Guidance(), **frozen)
        windowed = WindowedDenoiser(dit, shapes, plan_windows(22, 6), lambda window: texts, Guidance(), **frozen)
        sigma = torch.tensor([0.7])
        assert torch.equal(whole(x, sigma), windowed(x, sigma))


def test_each_window_is_its_own_clip_and_overlaps_are_averaged(dit):
    """The estimate of three windows, put together by hand: their audio, their text, the image in the first only."""
    length, window, overlap = 42, 5, 2
    video, audio = latents(dit, length)  # 11 latent frames: windows at 0, 3 and 6
    x, shapes = mh.pack_latents(video, audio)
    texts = {start: torch.randn(1, 5, dit.config.text_channels) for start in (0, 3, 6)}
    image = torch.randn_like(video[:, :, :1])
    values, mask = torch.zeros_like(video), torch.ones(1, 1, 11, 1, 1)
    values[:, :, :1], mask[:, :, 0] = image, 0
    sigma = 0.6
    calls = []
    with torch.inference_mode():
        windows = plan_windows(length, window, overlap)
        model = WindowedDenoiser(dit, shapes, windows, lambda window: (texts[window.start], None),
                                 frozen_video=(values, mask), on_window=lambda: calls.append(1))
        found_video, found_audio = mh.unpack_latents(model(x, torch.tensor([sigma])), shapes)
        parts = {}
        for start, end in ((0, 19), (3, 31), (6, 42)):
            part, heard = video[:, :, start : start + window].clone(), audio[:, :, 4 * start : end]
            if start == 0:
                part[:, :, :1] = image
            if start == 6:
                heard = torch.cat([heard, heard[:, :, -1:]], 2)  # the last window hears as much as the others
            v_video, v_audio = dit(part, heard, texts[start])
            parts[start] = part - sigma * v_video, heard - sigma * v_audio
    assert len(calls) == 3
    assert torch.equal(found_video[:, :, :1], image)
    torch.testing.assert_close(found_video[:, :, 1:3], parts[0][0][:, :, 1:3])
    torch.testing.assert_close(found_video[:, :, 5], parts[3][0][:, :, 2])  # alone in its middle
    for frame in (3, 4):  # of the first two windows, with weights 1 and 1
        expected = (parts[0][0][:, :, frame] + parts[3][0][:, :, frame - 3]) / 2
        torch.testing.assert_close(found_video[:, :, frame], expected)
    torch.testing.assert_close(found_audio[:, :, :12], parts[0][1][:, :, :12])
    for latent, (old, new) in {12: (4, 1), 15: (4, 4), 18: (1, 4)}.items():
        expected = (old * parts[0][1][:, :, latent] + new * parts[3][1][:, :, latent - 12]) / (old + new)
        torch.testing.assert_close(found_audio[:, :, latent], expected)
    torch.testing.assert_close(found_audio[:, :, 31:], parts[6][1][:, :, 7:18])


def test_each_window_sees_a_given_first_picture_in_the_place_of_its_first_frame(dit):
    length = 42
    video, audio = latents(dit, length)  # 11 latent frames: windows at 0, 3 and 6
    x, shapes = mh.pack_latents(video, audio)
    text, image = torch.randn(1, 5, dit.config.text_channels), torch.randn_like(video[:, :, :1])
    values, mask = torch.zeros_like(video), torch.ones(1, 1, 11, 1, 1)
    values[:, :, :1], mask[:, :, 0] = image, 0
    sigma = 0.6
    with torch.inference_mode():
        model = WindowedDenoiser(dit, shapes, plan_windows(length, 5, 2), lambda window: (text, None),
                                 frozen_video=(values, mask), anchor=True)
        found_video, found_audio = mh.unpack_latents(model(x, torch.tensor([sigma])), shapes)
        parts = {}
        for start in (0, 3):
            part = torch.cat([image, video[:, :, start + 1 : start + 5]], 2)
            heard = audio[:, :, 4 * start :][:, :, :19]
            v_video, v_audio = dit(part, heard, text)
            parts[start] = part - sigma * v_video, heard - sigma * v_audio
    assert torch.equal(found_video[:, :, :1], image)
    torch.testing.assert_close(found_video[:, :, 1:4], parts[0][0][:, :, 1:4])  # no frame is the second's picture
    torch.testing.assert_close(found_video[:, :, 4], (parts[0][0][:, :, 4] + parts[3][0][:, :, 1]) / 2)
    torch.testing.assert_close(found_video[:, :, 5], parts[3][0][:, :, 2])
    torch.testing.assert_close(found_audio[:, :, 15], (parts[0][1][:, :, 15] + parts[3][1][:, :, 3]) / 2)


def test_which_windows_see_what_is_given_before_them():
    windows = plan_windows(42, 5, 2)  # of latent frames 0 to 4, 3 to 7 and 6 to 10

    def seen(made, windows=windows):
        mask = torch.ones(1, 1, 11, 2, 4)
        for frame in set(range(11)) - set(made):
            mask[:, :, frame] = 0
        return [part.anchor for part in windows.anchored(mask).parts]

    assert seen(range(1, 11)) == [None, 0, 0]
    assert seen(range(11)) == [None] * 3, "no picture is given"
    assert seen(range(3, 11)) == [None, 2, 2], "the last of the frames that a clip goes on from"
    assert seen([1, 2, 3, 4, 6, 7, 8, 9, 10]) == [None, None, 5], "a picture at a later time"
    assert seen([1, 2, 3, 4, 5, 6, 7, 8, 9]) == [None, 0, None], "a window that has a last picture itself"
    assert seen([4, 5, 6, 7]) == [None] * 3, "a retake has the frames around it"
    assert seen(range(1, 11), plan_windows(42, 5, 1)) == [None] * 3, "the one shared frame carries the clip on"
    region = torch.ones(1, 1, 1, 2, 4)  # a mouth, in all frames
    region[..., 0, :] = 0
    assert windows.anchored(region) is windows
    assert [part.anchor for part in windows.anchored(torch.zeros(1, 1, 1, 2, 4)).parts] == [None] * 3


def test_what_is_kept_stays_and_windows_of_it_alone_cost_nothing(dit):
    length = 42
    video, audio = latents(dit, length)
    x, shapes = mh.pack_latents(video, audio)
    values, mask = torch.randn_like(video), torch.zeros(1, 1, 11, 1, 1)
    mask[:, :, 9] = 1
    kept_audio = torch.randn_like(audio)
    calls = []

    def text_for(window):
        calls.append(window.start)
        return torch.randn(1, 5, dit.config.text_channels), None

    model = WindowedDenoiser(dit, shapes, plan_windows(length, 5, 2), text_for,
                             frozen_video=(values, mask), frozen_audio=(kept_audio, torch.zeros(1, 1, 1)))
    found_video, found_audio = mh.unpack_latents(model(x, torch.tensor([0.5])), shapes)
    assert calls == [6]
    assert torch.equal(found_audio, kept_audio)
    still = [frame for frame in range(11) if frame != 9]
    assert torch.equal(found_video[:, :, still], values[:, :, still])
    assert not torch.equal(found_video[:, :, 9], values[:, :, 9])


def test_guidance_counts_from_the_start_of_the_clip():
    assert later_guidance(Guidance(first_frames=13), 8).first_frames == 5
    assert later_guidance(Guidance(first_frames=13), 16).first_frames == 0


@pytest.mark.parametrize(("window", "overlap"), [(5, 5), (5, 7), (5, 0), (1, 1)])
def test_windows_that_cannot_cover_a_clip(window, overlap):
    with pytest.raises(mh.InputError, match=f"Windows of {window} latent frames cannot overlap by {overlap}"):
        plan_windows(400, window, overlap)


def test_the_lips_follow_the_sound_through_all_windows_and_not_one_latent_frame_later():
    """The demo model on 4 s of driving speech: alignment decides all, and a control shows that it does."""
    clip = make_clip(3, seconds=4)
    short = make_clip(3, attributes=clip.attributes)
    demo = Demo(DEMO)
    with torch.inference_mode():
        audio = demo.audio_vae.encode(torch.from_numpy(clip.audio)[None])
        image, text = demo.vae.encode(from_pixels(clip.video[:1])), demo.text_encoder.encode(short.caption)
        shapes = [[1, 48, latent_frames(audio.shape[2]), 8, 8], list(audio.shape)]
        x = mh.pack_latents(*start_noise(shapes, 3))[0]
        values, mask = torch.zeros(shapes[0]), torch.ones(1, 1, shapes[0][2], 1, 1)
        values[:, :, :1], mask[:, :, 0] = image, 0

        def sync(heard):
            model = WindowedDenoiser(demo.networks["distilled"], shapes, plan_windows(audio.shape[2], 13),
                                     lambda window: (text, None), frozen_video=(values, mask),
                                     frozen_audio=(heard, torch.zeros(1, 1, 1)))
            made = mh.sample_renoise(model, x, mh.flow_sigmas(8), {"seed": 3}, disable=True)
            shown = to_pixels(demo.turbo.decode(mh.unpack_latents(made, shapes)[0]))
            end = len(shown) - 25  # the last second, where the clip's sound is two latents short of its last window
            return measure.sync(shown, clip.audio), measure.sync(shown[end:], clip.audio[:, end * 2048 :])

        assert min(sync(audio)) > 0.85
        assert sync(audio.roll(4, 2))[0] < 0.5
