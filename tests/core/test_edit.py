"""Clips made of clips: what is made anew, what stays as it was to the bit, and clips of every kind as sources."""

import math
import os
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

import magihuman_core as mh
from magihuman_core.media.frames import Frames
from magihuman_core.media.image import fit_image
from magihuman_core.media.mask import soft_edge
from magihuman_core.media.mp4 import write_mp4
from magihuman_core.media.video_file import open_video
from magihuman_core.pipeline.clip import Clip
from magihuman_core.pipeline.edits import crop_mask, ellipse_mask, read_mask
from magihuman_core.pipeline.pipeline import MagiHumanPipeline
from magihuman_core.sampling.regenerate import latents_between
from magihuman_core.text.script import as_segments, parse_script, segment_at

PROMPT = "A woman looks into the camera and says good morning."
SIZE = {"width": 64, "height": 32}
FAST = {"steps": 1, **SIZE}


@pytest.fixture(scope="module")
def pipeline(random_models):
    return MagiHumanPipeline.from_folder(random_models, device="cpu")


@pytest.fixture(scope="module")
def clip(pipeline):
    """33 frames, made here, so that its latents are known."""
    made = pipeline.generate(PROMPT, seconds=1.3, seed=3, **FAST)
    assert made.latents is not None and made.latents[0].shape[2] == 9
    return made


def tone(seconds, pitch=440, rate=16000):
    times = torch.arange(round(seconds * rate)) / rate
    return (0.5 * torch.sin(2 * math.pi * pitch * times)).expand(2, -1), rate


def numbered(count, height=64, width=96):
    """Frames that say which one they are: a grey that rises by 4."""
    return (torch.arange(count) * 4 % 200 + 20).byte()[:, None, None, None].expand(count, height, width, 3)


def greys(frames):
    return [round(float(frame.float().mean())) for frame in frames]


# Clips as sources


@pytest.mark.parametrize("rate", [Fraction(24), Fraction(30000, 1001), Fraction(30), Fraction(50), Fraction(12)])
def test_any_rate_becomes_25_frames_a_second_in_step_with_the_sound(tmp_path, rate):
    """Every frame is the one that is shown at its time, and the sound has its length."""
    count = round(2 * rate)
    write_mp4(tmp_path / "a.mp4", numbered(count), tone(2, rate=44100)[0],
              fps=rate)
    with av.open(str(tmp_path / "a.mp4")) as film:
        shown = [round(float(f.to_ndarray(format="rgb24").mean())) for f in film.decode(video=0)]
    file = open_video(tmp_path / "a.mp4")
    assert (file.width, file.height) == (96, 64)
    assert abs(file.count - 50) <= 1
    found = greys(file.frames(96, 64))
    assert len(found) == file.count
    for number, grey in enumerate(found):
        assert abs(grey - shown[min(int((number / 25 + 0.002) * rate), count - 1)]) <= 1


def test_sound_is_found_where_it_was_written(tmp_path):
    """A click at one second is at one second: no encoder delay is left in it."""
    sound = torch.zeros(2, 88200)
    sound[:, 44100:44120] = 0.9
    write_mp4(tmp_path / "a.mp4", numbered(50), sound)
    waveform, rate = open_video(tmp_path / "a.mp4").audio()
    assert abs(int(waveform[0].abs().argmax()) / rate - 1) < 0.001


def test_frames_of_uneven_times(tmp_path):
    """A film of a telephone: each frame is shown until the next one's time."""
    times = [0, 1, 2, 10, 11, 25, 26, 49]
    with av.open(str(tmp_path / "a.mkv"), "w") as film:
        stream = film.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 96, 64, "bgr0", Fraction(1, 25)
        for frame, time in zip(numbered(8), times, strict=True):
            image = av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")
            image.pts, image.time_base = time, Fraction(1, 25)
            film.mux(stream.encode(image))
        film.mux(stream.encode(None))
    found = greys(open_video(tmp_path / "a.mkv").frames(96, 64))
    assert len(found) >= 50
    assert [found[i] for i in (0, 1, 2, 9, 10, 24, 25, 48, 49)] == [20, 24, 28, 28, 32, 36, 40, 44, 48]
    assert open_video(tmp_path / "a.mkv").audio() is None


def test_ten_bits_and_other_sizes(tmp_path):
    """A wide film is cropped in the middle to the size that is asked for."""
    with av.open(str(tmp_path / "a.mkv"), "w") as film:
        stream = film.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 200, 50, "yuv420p10le"
        picture = np.zeros((50, 200, 3), np.uint8)
        picture[:, 75:125] = 200
        for number in range(5):
            image = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p10le")
            image.pts = number
            film.mux(stream.encode(image))
        film.mux(stream.encode(None))
    frames = open_video(tmp_path / "a.mkv").frames(32, 32).tensor()
    assert frames.shape == (5, 32, 32, 3)
    assert frames[:, :, 1:-1].float().mean() > 190


@pytest.mark.parametrize(("make", "words"), [
    (lambda path: path.write_bytes(b"hello"), "cannot be read as a video"),
    (lambda path: path.write_bytes(b""), "is empty"),
    (lambda path: write_mp4(path, numbered(1), None), "has one frame only"),
])  # fmt: skip
def test_what_is_no_clip(pipeline, tmp_path, make, words):
    make(tmp_path / "a.mp4")
    with pytest.raises(mh.InputError, match=words):
        pipeline.retake(tmp_path / "a.mp4", 0, 1, prompt=PROMPT)


# Retake, dub, another look


def test_a_retake_leaves_the_rest_as_it_was(pipeline, clip):
    again = pipeline.retake(clip, 0.5, 0.7, seed=9, steps=1)
    changed = (again.latents[0] != clip.latents[0]).flatten(3).any(-1).any(1)[0].nonzero().flatten().tolist()
    assert changed == [3, 4, 5]  # frames 12 to 17 are decoded from these, which make frames 9 to 20
    changed = (again.latents[1] != clip.latents[1]).any(1)[0].nonzero().flatten().tolist()
    assert changed == list(range(9, 21))
    changed = (again.frames != clip.frames).flatten(1).any(1).nonzero().flatten().tolist()
    assert changed and min(changed) >= 9 and max(changed) <= 20
    changed = (again.audio != clip.audio).any(0).nonzero().flatten()
    assert int(changed.min()) >= 9 * 1764 and int(changed.max()) < 21 * 1764


def test_a_retake_of_one_stream_keeps_the_other(pipeline, clip):
    spoken = pipeline.retake(clip, 0.5, 0.7, seed=9, steps=1, audio_only=True)
    assert torch.equal(spoken.frames, clip.frames) and not torch.equal(spoken.audio, clip.audio)
    seen = pipeline.retake(clip, 0.5, 0.7, seed=9, steps=1, video_only=True)
    assert torch.equal(seen.audio, clip.audio) and not torch.equal(seen.frames, clip.frames)


def test_times_are_those_of_latent_frames():
    assert latents_between(0, 0.04) == (0, 0)
    assert latents_between(0.04, 0.2) == (1, 1)  # frames 1 to 4
    assert latents_between(0.16, 0.24) == (1, 2)  # frames 4 and 5


def test_dubbing_changes_the_mouth_and_the_sound(pipeline, clip):
    mouth = (0.5, 0.5, 0.5, 0.9)
    new = pipeline.dub(clip, tone(1), mask=mouth, seed=1, steps=1)
    inside = ellipse_mask(mouth, 64, 32) > 0
    difference = (new.frames.int() - clip.frames.int()).abs().amax((0, 3))
    assert difference[~inside].max() == 0 and difference[inside].max() > 0
    assert new.audio.shape == clip.audio.shape  # the tone is shorter: silence follows
    expected = torch.sin(2 * math.pi * 440 * torch.arange(44100) / 44100) * 0.5
    assert np.corrcoef(new.audio[0, 2000:42000], expected[2000:42000])[0, 1] > 0.999
    assert new.audio[:, 45000:].abs().max() < 0.01
    assert new.metadata["prompt"] == PROMPT and new.metadata["driven_by_sound"]


def test_dubbing_a_film_of_another_size_and_rate(pipeline, tmp_path):
    """150x100 at 30 frames per second, without sound and without a prompt of its own."""
    noise = (torch.rand(30, 100, 150, 3, generator=torch.Generator().manual_seed(0)) * 255).byte()
    write_mp4(tmp_path / "film.mp4", noise, None, fps=30)
    with pytest.raises(mh.InputError, match="does not say what its prompt was"):
        pipeline.dub(tmp_path / "film.mp4", tone(1))
    new = pipeline.dub(tmp_path / "film.mp4", tone(2), prompt=PROMPT, steps=1)
    assert new.frames.shape == (25, 96, 128, 3)
    assert new.audio.shape == (2, 25 * 1764)


def test_new_sound_leaves_the_picture_in_its_own_size(pipeline, tmp_path, caplog):
    noise = (torch.rand(25, 480, 640, 3, generator=torch.Generator().manual_seed(0)) * 255).byte()
    write_mp4(tmp_path / "film.mp4", noise, None, fps=25)
    film = tmp_path / "film.mp4"
    new = pipeline.retake(film, 0.2, 0.5, audio_only=True, prompt=PROMPT, steps=1)
    assert new.frames.shape == (25, 480, 640, 3)
    assert torch.equal(new.frames, open_video(film).frames(640, 480).tensor())
    assert "smaller than the old one" not in caplog.text
    again = pipeline.retake(new, 0.6, 0.8, prompt=PROMPT, steps=1)
    assert again.frames.shape == (25, 288, 384, 3)
    assert "384x288, smaller than the old one, 640x480" in caplog.text


def test_another_look_keeps_the_sound_and_as_much_as_is_asked(pipeline, clip):
    def distance(denoise):
        other = pipeline.generate(PROMPT, clip=clip, denoise=denoise, seed=5, steps=2)
        assert torch.equal(other.audio, clip.audio)
        return float((other.latents[0] - clip.latents[0]).square().mean())

    little, much, all_new = map(distance, (0.01, 0.3, 1.0))
    assert 0 < little < much < all_new


@pytest.mark.parametrize("make", [
    lambda pipeline, clip, **options: pipeline.generate(PROMPT, seconds=0.5, **SIZE, **options),
    lambda pipeline, clip, **options: pipeline.generate(PROMPT, audio=tone(0.6), image=Image.new("RGB", (64, 32)),
                                                        **SIZE, **options),
    lambda pipeline, clip, **options: pipeline.generate(PROMPT, clip=clip, denoise=0.3, **options),
    lambda pipeline, clip, **options: pipeline.dub(clip, tone(1), **options),
    lambda pipeline, clip, **options: pipeline.retake(clip, 0.3, 0.8, **options),
    lambda pipeline, clip, **options: pipeline.retake(clip, 0.3, 0.8, video_only=True, upscale=(128, 64), sr_steps=1,
                                                      **options),
    lambda pipeline, clip, **options: pipeline.extend(clip, seconds=0.5, **options),
    lambda pipeline, clip, **options: pipeline.extend(clip, audio=tone(0.6), **options),
    lambda pipeline, clip, **options: pipeline.generate_audio(PROMPT, seconds=0.4, **options),
], ids=["plain", "driven", "another look", "dub", "retake", "enlarged", "extended", "extended, driven", "voice"])
def test_the_stages_that_come_are_those_that_were_said(pipeline, clip, make):
    class Watching:
        planned, begun = (), ()

        def __call__(self, stage, done, total):
            pass

        def plan(self, stages):
            self.planned = [name for name, _ in stages]

        def begin(self, stage):
            self.begun = [*self.begun, stage.partition(",")[0]]

    watching = Watching()
    make(pipeline, clip, steps=1, progress=watching)
    assert watching.begun == watching.planned
    before = watching.begun
    pipeline.generate_audio(PROMPT, seconds=0.2, steps=1)
    assert watching.begun == before, "another clip's stages are not its own"


def test_decoding_tells_its_stages(pipeline, clip, tmp_path):
    pipeline.generate(PROMPT, seconds=0.4, save_latents=tmp_path / "a.safetensors", **FAST)
    told = []

    class Watching:
        def __call__(self, stage, done, total):
            pass

        def plan(self, stages):
            told.append([name for name, share in stages if share > 0])

        def begin(self, stage):
            told.append(stage)

    pipeline.decode(tmp_path / "a.safetensors", progress=Watching())
    assert told == [["sound decoder", "picture decoder"], "sound decoder", "picture decoder"]


# Longer clips


def test_an_extension_goes_on_where_the_clip_ends(pipeline, clip):
    longer = pipeline.extend(clip, seconds=0.6, seed=2, steps=1)
    assert longer.frames.shape[0] == 33 + 16
    assert torch.equal(longer.frames[:33], clip.frames)
    assert torch.equal(longer.audio[:, : 33 * 1764 - 441], clip.audio[:, :-441])  # the last 10 ms are cross-faded
    assert torch.equal(longer.latents[0][:, :, :9], clip.latents[0]) and longer.latents[0].shape[2] == 13
    again = pipeline.extend(longer, seconds=0.6, seed=2, steps=1)
    assert again.latents[0].shape[2] == 17


@pytest.mark.parametrize("audio", [None, tone(0.6)])
def test_a_clip_that_ends_within_a_latent_frame_carries_its_latents_too(pipeline, audio):
    """27 frames, the last two of which are of a latent frame of four: the two are kept, and that one is made anew."""
    clip = pipeline.generate(PROMPT, audio=tone(27 / 25), seed=3, **FAST)
    assert clip.frames.shape[0] == 27 and clip.latents[0].shape[2] == 8
    longer = pipeline.extend(clip, seconds=None if audio else 0.6, audio=audio, seed=2, steps=1)
    assert 15 <= longer.frames.shape[0] - 27 <= 18  # whole latent frames
    assert torch.equal(longer.frames[:27], clip.frames)
    assert torch.equal(longer.latents[0][:, :, :7], clip.latents[0][:, :, :7])
    assert torch.equal(longer.audio[:, : 27 * 1764 - 441], clip.audio[:, :-441])
    if audio is not None:  # the new sound begins with the first new frame
        new, given = longer.audio[0, 27 * 1764 :], tone(0.6, rate=44100)[0][0]
        assert np.corrcoef(new[4000:20000], given[4000:20000])[0, 1] > 0.99
    again = pipeline.retake(clip, 0.2, 0.4, seed=4, steps=1)
    changed = (again.latents[0] != clip.latents[0]).flatten(3).any(3).any(1)[0]
    assert changed.tolist() == [False, False, True, True, *[False] * 4]
    assert torch.equal(again.frames[20:], clip.frames[20:])


def test_three_driven_extensions_of_a_file_keep_the_clock(pipeline, clip, tmp_path):
    """The new sound begins with the first new frame, to the sample, each time it is written and read again."""
    clip.save(tmp_path / "0.mp4")
    ends = [33]
    for number in range(3):
        # A click in the middle of the new part, read back through the codec each time.
        sound, rate = torch.zeros(2, 16000), 16000
        sound[:, 8000:8010] = 0.9
        longer = pipeline.extend(tmp_path / f"{number}.mp4", audio=(sound, rate), seed=number, steps=1, **SIZE)
        click = longer.audio[0, ends[-1] * 1764 :].abs().argmax() / 44100
        assert abs(float(click) - 0.5) < 0.001
        longer.save(tmp_path / f"{number + 1}.mp4")
        ends.append(longer.frames.shape[0])
    assert longer.audio.shape[1] == longer.frames.shape[0] * 1764
    heard, rate = open_video(tmp_path / "3.mp4").audio()
    for end in ends[:3]:
        start = round((end / 25 + 0.3) * rate)
        click = start + int(heard[0, start : start + round(0.4 * rate)].abs().argmax())
        assert abs(click / rate - end / 25 - 0.5) < 0.002


def test_a_driven_clip_of_several_windows_has_its_sound_and_is_made_lazily(pipeline, tmp_path):
    eager, lazy = (pipeline.generate(PROMPT, audio=tone(2), window=0.5, overlap=0.16, seed=4, lazy=lazy, **FAST)
                   for lazy in (False, True))
    assert eager.frames.shape[0] == 50 or eager.frames.shape[0] == 49
    assert torch.equal(eager.frames, lazy.frames)
    one = pipeline.generate(PROMPT, audio=tone(2), window=4, seed=4, **FAST)
    assert not torch.equal(one.frames, eager.frames)
    lazy.save(tmp_path / "a.mp4")
    assert open_video(tmp_path / "a.mp4").count == eager.frames.shape[0]


def test_super_resolution_in_windows(pipeline):
    made = pipeline.generate(PROMPT, seconds=1.3, window=0.5, overlap=0.16, upscale=(96, 64), sr_steps=1, **FAST)
    assert made.frames.shape == (33, 64, 96, 3) and made.latents is None


# Keyframes, scripts, seeds, drafts


def test_pictures_are_shown_at_their_times(pipeline, random_models, photograph):
    """A keyframe is latent 1 of a still; the first picture is latent 0, as ever; a loop ends as it begins."""
    other = Image.effect_noise((64, 32), 90).convert("RGB")
    made = pipeline.generate(PROMPT, image=photograph, keyframes={0.5: other}, loop=True, seconds=1, steps=2, **SIZE)
    vae = mh.load_video_vae(random_models / "vae")
    with torch.inference_mode():
        first, middle = (vae.encode(fit_image(Image.open(path) if path is photograph else path, 64, 32)
                                    .expand(-1, -1, 5, -1, -1)) for path in (photograph, other))
    video = made.latents[0]
    torch.testing.assert_close(video[:, :, :1], first[:, :, :1])
    torch.testing.assert_close(video[:, :, 3:4], middle[:, :, 1:])  # frame 12 is decoded from latent frame 3
    torch.testing.assert_close(video[:, :, -1:], first[:, :, 1:])


@pytest.mark.parametrize(("keyframes", "loop", "words"), [
    ({9: "a"}, False, "at 9 s, but the clip ends at"), ({-1: "a"}, False, "is at -1"), ({"end": "a"}, False, "'end'"),
    ({}, True, "loop needs a picture"), ({0.52: "a", 0.6: "a"}, False, "within 0.16 s"),
    ({0: "a", "last": "a"}, True, "another picture for it"),
])  # fmt: skip
def test_keyframes_that_cannot_be(pipeline, photograph, keyframes, loop, words):
    keyframes = dict.fromkeys(keyframes, photograph)
    with pytest.raises(mh.InputError, match=words):
        pipeline.generate(PROMPT, keyframes=keyframes, loop=loop, seconds=1, **FAST)


def test_a_script_is_read_and_its_parts_follow_each_other():
    plain = parse_script("# a comment\n2 She says hello.\n\n1.5s: She laughs.\n", "a.txt")
    lines = parse_script('{"seconds": 2, "prompt": "She says hello."}\n{"seconds": 1.5, "prompt": "She laughs."}', "b")
    odd = "a\x85b\u2028c"  # where splitlines would part lines, too
    text = f'{{"seconds": 1, "prompt": "{odd}"}}\r\n2 {odd}\r3 x'
    assert [part.prompt for part in parse_script(text, "c")] == [odd, odd, "x"]
    assert plain == lines and [part.seconds for part in plain] == [2, 1.5]
    assert [segment_at(plain, seconds * 6.25) for seconds in (0, 1.9, 2.1, 3.4, 99)] == [0, 0, 1, 1, 1]
    assert [segment_at(as_segments("one"), frame) for frame in (0, 99)] == [0, 0]


@pytest.mark.parametrize(("text", "words"), [
    ("hello", "line 1 does not begin with its seconds"), ("4", "line 1 has seconds, but no prompt"),
    ("4 s: ", "line 1 has seconds, but no prompt"), ("# no\n4,5 A woman", "line 2 has no space behind its seconds"),
    ("4A woman", "line 1 has no space behind its seconds"), ("\n# no\n", "holds no part"), ('{"seconds": 1}', "line 1"),
    ('{"seconds": 1, "prompt": null}', "line 1 is not of the form"),
    ('{"seconds": 1, "prompt": "a"}\r\n{"seconds": 1, "prompt": ["a", "b"]}', "line 2 is not of the form"),
    ('{"seconds": 1, "prompt": 7}', "line 1 is not of the form"),
    ('{"seconds": 1, "prompt": "a", "negative": "b"}', "line 1 is not of the form"),
    ('{"seconds": 1, "prompt": "a", "prompt": "b"}', "line 1 is not of the form"),
])  # fmt: skip
def test_scripts_that_cannot_be_read(text, words):
    with pytest.raises(mh.InputError, match=words):
        parse_script(text, "a.txt")


def test_a_script_makes_windows_of_different_prompts(pipeline):
    script = [(0.7, PROMPT), (0.7, "A man says good night.")]
    made = pipeline.generate(script, window=0.5, overlap=0.16, seed=2, **FAST)
    assert made.frames.shape[0] == 33
    same = pipeline.generate(PROMPT, seconds=1.4, window=0.5, overlap=0.16, seed=2, **FAST)
    # The first window sees its own prompt only; by the end all is different.
    assert torch.equal(made.latents[0][:, :, :2], same.latents[0][:, :, :2])
    assert not torch.equal(made.latents[0][:, :, -1], same.latents[0][:, :, -1])


def test_parts_of_a_script_that_no_window_follows_are_named(pipeline, caplog):
    for parts, window, unused in (((0.2, 0.6), None, "1"), ((0.4, 0.4, 0.4), None, "1, 3"), ((0.7, 0.7), 0.5, None)):
        caplog.clear()
        request = pipeline._request([(seconds, PROMPT) for seconds in parts], [1], window=window,
                                    overlap=window and 0.16)
        warned = [record.getMessage() for record in caplog.records if "No window has" in record.getMessage()]
        assert len(request.segments) == len(parts)
        assert [f"part {unused} of the script" in text for text in warned] == ([] if unused is None else [True])


def test_a_line_without_spaces_is_not_too_short_for_super_resolution(pipeline):
    request = pipeline._request("\u4e00\u4f4d\u5973\u58eb\u5fae\u7b11\u7740\u8bf4", [1], upscale=(128, 64), **SIZE)
    assert request.upscaling.size == (128, 64)


@pytest.mark.parametrize(("script", "options", "words"), [
    ([(2, "a"), (2, "b")], {"seconds": 3}, "last 4 s together, but the clip is to have 3 s"),
    ([(2, "a"), (2, "b")], {"audio": tone(1)}, "last 4 s together, but the recording has 1 s"),
    ([(0, "a")], {}, "Part 1 of the script lasts 0"), ([], {}, "empty list"),
])  # fmt: skip
def test_scripts_that_do_not_add_up(pipeline, script, options, words):
    with pytest.raises(mh.InputError, match=words):
        pipeline.generate(script, **options, **FAST)


def test_seeds_are_the_clips_they_would_be_alone(pipeline):
    clips = list(pipeline.generate_seeds(PROMPT, [4, 7], seconds=0.4, **FAST))
    assert [clip.metadata["seed"] for clip in clips] == [4, 7]
    for clip in clips:
        alone = pipeline.generate(PROMPT, seed=clip.metadata["seed"], seconds=0.4, **FAST)
        assert torch.equal(clip.frames, alone.frames) and torch.equal(clip.audio, alone.audio)


def test_a_voice_draft_is_the_sound_of_the_smallest_clip(pipeline):
    waveform, rate = pipeline.generate_audio(PROMPT, seconds=0.4, seed=3, steps=1)
    clip = pipeline.generate(PROMPT, seconds=0.4, seed=3, steps=1, width=32, height=32)
    assert rate == 44100
    torch.testing.assert_close(waveform[:, : clip.audio.shape[1]], clip.audio)


# Bad input, before anything is computed


@pytest.mark.parametrize(("call", "words"), [
    (lambda p, c: p.retake(c, 1, 0.5), "must end after it starts"),
    (lambda p, c: p.retake(c, 9, 10), "but the clip ends at 1.32 s"),
    (lambda p, c: p.retake(c, 9, 1), "but the clip ends at 1.32 s"),
    (lambda p, c: p.retake(c, -1, 1), "start is -1"),
    (lambda p, c: p.retake(c, 0, 1, audio_only=True, video_only=True), "Choose one, or neither"),
    (lambda p, c: p.dub(c, tone(0.03)), "less than one frame"),
    (lambda p, c: p.dub(c, tone(1), mask=torch.zeros(8, 8)), "black all over"),
    (lambda p, c: p.dub(c, tone(1), mask=torch.ones(8, 8)), "white all over"),
    (lambda p, c: p.dub(c, tone(1), mask=(0.5, 0.5, 2, 1)), "fraction of the picture"),
    (lambda p, c: p.dub(7, tone(1)), "clip is int"),
    (lambda p, c: p.generate(PROMPT, clip=c, seconds=3), "seconds cannot be chosen"),
    (lambda p, c: p.generate(PROMPT, denoise=0.5), "needs a clip to begin with"),
    (lambda p, c: p.generate(PROMPT, clip=c, denoise=0), "denoise is 0"),
    (lambda p, c: p.generate(PROMPT, window=1, overlap=1), "overlap is 1 s for windows of 1 s"),
    (lambda p, c: p.generate(PROMPT, window=0), "window is 0 seconds"),
    (lambda p, c: p.dub(c, tone(1), seconds=3), "seconds cannot be chosen"),
    (lambda p, c: p.dub(c, tone(1), edge=8), "edge is of a mask"),
    (lambda p, c: p.retake(c, 0.3, 0.8, audio=tone(1)), "audio cannot be chosen"),
    (lambda p, c: p.retake(c, 0.3, 0.8, audio_only=True, upscale="540p"), "upscale cannot be chosen"),
    (lambda p, c: p.extend(c, denoise=0.5), "denoise cannot be chosen"),
    (lambda p, c: p.extend(c, keyframes={"last": "a.png"}), "keyframes cannot be chosen"),
    (lambda p, c: p.extend(c, loop=True), "loop cannot be chosen"),
    (lambda p, c: p.extend(c, seconds=0.01), "less than a frame"),
    (lambda p, c: p.extend(c, prompt=[(0.01, PROMPT)]), "less than a frame"),
    (lambda p, c: p.stream([tone(1)[0]], rate=16000, prompt=PROMPT, keyframes={1: "a.png"}), "keyframes cannot be"),
    (lambda p, c: p.stream([tone(1)[0]], rate=16001, prompt=PROMPT), "rate is 16001"),
    (lambda p, c: p.stream([tone(1)[0]], rate=16000, prompt=PROMPT, overlap=60), "cannot carry"),
])  # fmt: skip
def test_what_cannot_be_done_is_said_at_once(pipeline, clip, monkeypatch, call, words):
    monkeypatch.setattr("magihuman_core.pipeline.stages.encode_texts", lambda *_: pytest.fail("came to work"))
    with pytest.raises(mh.InputError, match=words):
        call(pipeline, clip)


def test_masks_of_other_sizes_are_cropped_as_pictures_are(tmp_path):
    """As by the node: a square that is painted stays one."""
    mask = torch.zeros(512, 512)
    mask[200:300, 200:300] = 1
    Image.fromarray((mask * 255).byte().numpy()).save(tmp_path / "mask.png")
    for given in (mask, mask[None], tmp_path / "mask.png"):
        found = read_mask(given, 448, 256)
        assert torch.equal(found, crop_mask(mask, 448, 256)) and found.shape == (256, 448)
        rows, columns = ((found > 0.5).any(axis).nonzero() for axis in (1, 0))
        assert abs(len(rows) - 88) <= 1 and abs(len(columns) - 88) <= 1  # 100 of 512, in a width of 448
    assert torch.equal(read_mask(mask, 512, 512), mask)
    above = torch.zeros(512, 512)
    above[:50] = 1
    with pytest.raises(mh.InputError, match="nothing of it is left"):
        read_mask(above, 448, 256)


def test_a_soft_edge_lies_within_its_mask():
    mask = torch.zeros(40, 40)
    mask[10:30, 10:30] = 1
    edge = soft_edge(mask, 4)
    assert edge[mask == 0].max() == 0 and edge[15:25, 15:25].min() == 1
    assert 0 < edge[10, 20] < edge[12, 20] < 1
    assert torch.equal(soft_edge(mask, 0), mask)
    square = torch.nn.functional.pad(mask[None, None], (4,) * 4, mode="replicate").unfold(2, 9, 1).unfold(3, 9, 1)
    expected = (2 * square.mean((-1, -2))[0, 0] - 1).clamp(0, 1) * mask
    torch.testing.assert_close(edge, expected, atol=1e-6, rtol=0)
    assert soft_edge(mask, 8192).max() == 0, "as quick as a narrow one"


def test_a_clip_is_saved_over_no_device_and_under_no_other_ending(tmp_path):
    clip = Clip(Frames.of(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)), torch.zeros(2, 3528))
    with pytest.raises(mh.InputError, match=r"ends in \.mp4"):
        clip.save(tmp_path / "a.webm")
    pipe = tmp_path / "pipe.mp4"
    if hasattr(os, "mkfifo"):
        os.mkfifo(pipe)
        with pytest.raises(mh.InputError, match="is a device or a pipe"):
            clip.save(pipe)
        assert pipe.is_fifo()


def test_frames_are_read_as_they_are_needed():
    read = []

    def pieces():
        for number in range(10):
            read.append(number)
            yield numbered(10)[number : number + 1]

    frames = Frames(10, 64, 96, pieces)
    assert greys(frames.part(2, 4)) == [28, 32] and read == [0, 1, 2, 3]
    joined = frames.part(0, 1).followed_by(frames.part(8, 10))
    assert len(joined) == 3 and greys(joined) == greys(joined) == [20, 52, 56]
    half = frames.mixed(Frames.of(numbered(10) + 40), lambda start, end: torch.full((end - start, 1, 1, 1), 0.5))
    assert greys(half) == [grey + 20 for grey in greys(frames)]
    assert Clip(frames, torch.zeros(2, 0)).frames.shape == (10, 64, 96, 3)
