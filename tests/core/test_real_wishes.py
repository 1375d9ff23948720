"""What people ask for is what is made: shape, length, level; or a word says why not, before any work."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

import magihuman_core as mh
from magihuman_core.errors import CheckpointError, InputError
from magihuman_core.loading.folder import find_models
from magihuman_core.media.image import warn_of_cropping
from magihuman_core.media.mp4 import write_mp4
from magihuman_core.media.video_file import open_video
from magihuman_core.pipeline.pipeline import MagiHumanPipeline
from magihuman_core.pipeline.request import Keyframe, usual_size
from magihuman_core.recipes import BASE, Guidance
from magihuman_core.sizes import covering_length, decoded_frames, frames_of, latent_frames, shape_like

PROMPT = "A happy woman says calmly: ma so mi"


@pytest.mark.parametrize(("picture", "size"), [
    ((900, 1600), (256, 448)), ((1600, 900), (448, 256)), ((3024, 4032), (288, 384)), ((1000, 1000), (320, 320)),
    ((4032, 3024), (384, 288)), ((1170, 2532), (224, 480)), ((100, 4000), (224, 512)), ((448, 256), (448, 256))])
def test_a_clip_has_the_shape_of_its_picture(picture, size):
    assert shape_like(*picture, BASE.area) == size
    assert -0.12 < math.log(size[0] * size[1] / BASE.area) <= 0


def wide(width, height):
    return Keyframe(0, Image.new("RGB", (100 * width, 100 * height)))


def test_the_picture_decides_only_where_nobody_else_does(random_models):
    models, still = find_models(random_models), Keyframe(0, Image.new("RGB", (900, 1600)))
    assert usual_size(models, [still]) == (256, 448)
    assert usual_size(models, [Keyframe(3, still.image)]) == usual_size(models, []) == (448, 256)
    demo = find_models("demo")
    assert [usual_size(demo, stills) for stills in ([still], [wide(4, 3)], [wide(16, 9)], [])] == [
        (96, 160), (160, 96), (160, 96), (128, 128)]
    assert usual_size(demo, [wide(6, 5)]) == (128, 128)


@pytest.mark.parametrize(("target", "said"), [((448, 256), True), ((256, 448), False), ((224, 448), False)])
def test_much_that_is_cut_away_is_said(target, said, caplog):
    warn_of_cropping((900, 1600), target)
    assert bool(caplog.records) == said
    if said:
        assert "The picture is 900x1600: 68 % of it are cut away to fill 448x256. A clip of 256x448 s" in caplog.text


@pytest.fixture(scope="module")
def pipeline(random_models):
    return MagiHumanPipeline.from_folder(random_models, device="cpu")


def sound(seconds: float, rate: int = 44100) -> torch.Tensor:
    return 0.3 * torch.sin(torch.arange(round(seconds * rate)) / 20)[None]


@pytest.mark.parametrize("seconds", [0.04, 0.05, 0.51, 0.6, 0.61, 0.64])
def test_a_recording_keeps_its_end(pipeline, seconds):
    """No sample is lost, whatever the latents' raster is, and no more than a frame of silence is added."""
    given = sound(seconds)
    given[:, -200:] = 0.9
    clip = pipeline.generate(PROMPT, audio=(given, 44100), steps=1, width=64, height=32)
    assert 0 <= clip.seconds - given.shape[1] / 44100 < 0.04
    assert torch.equal(clip.audio[:, : given.shape[1]], given.expand(2, -1))
    assert clip.audio.shape[1] == clip.video.count * 1764


def test_seconds_beyond_a_recording_are_silence(pipeline):
    clip = pipeline.generate(PROMPT, audio=(sound(0.3), 44100), seconds=0.8, steps=1, width=64, height=32)
    assert clip.video.count == 20
    assert clip.audio[:, :13000].abs().max() > 0.2 and not clip.audio[:, 13300:].any()


def test_a_continuation_keeps_the_end_of_its_recording(pipeline):
    first = pipeline.generate(PROMPT, seconds=0.6, steps=1, width=64, height=32)
    for seconds in (0.30, 0.33, 0.37):
        longer = pipeline.extend(first, audio=(sound(seconds), 44100), steps=1)
        added = longer.seconds - first.seconds
        assert 0 <= added - seconds < 0.04
        assert torch.equal(longer.audio[:, first.audio.shape[1] :][:, : round(seconds * 44100)],
                           sound(seconds).expand(2, -1))


@pytest.mark.parametrize("frames", range(1, 40))
def test_a_clip_covers_its_frames_and_wastes_fewer_than_a_latent(frames):
    length = covering_length(frames)
    assert 0 <= decoded_frames(latent_frames(length)) - frames < 4
    assert frames_of(1764 * frames, 44100) == frames and frames_of(1764 * frames + 1, 44100) == frames + 1


@pytest.mark.parametrize("rate", [16, 24, 30, 50, Fraction(30000, 1001)])
def test_a_film_at_another_rate_keeps_its_time(tmp_path, rate):
    """Frame n shows n / rate seconds of brightness: at 25 per second the same brightness at the same time."""
    count = round(2 * rate)
    levels = (torch.arange(count) * 200 / count).to(torch.uint8)
    write_mp4(tmp_path / "a.mp4", levels[:, None, None, None].expand(-1, 64, 64, 3).contiguous(), None, fps=rate)
    film = open_video(tmp_path / "a.mp4")
    seen = film.frames(64, 64).tensor().float().mean((1, 2, 3))
    assert abs(film.count - 50) <= 1
    wanted = torch.arange(len(seen)) / 25 * 100
    assert (seen - wanted).abs().max() < 100 / float(rate) + 6


BAD_NUMBERS = [float("nan"), float("inf"), -1.0, 1e300, "4", True, None]


@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize("name", ["seconds", "window", "overlap", "denoise", "steps", "sr_steps", "width", "seed"])
def test_numbers_that_are_none_are_refused_before_any_work(pipeline, name, value):
    if value is None and name not in ("steps", "sr_steps", "denoise", "seed"):
        return  # stands for the usual
    if (name, value) in (("steps", None), ("denoise", True)):
        return
    calls = []
    with pytest.raises(InputError, match=name):
        pipeline.generate(PROMPT, progress=lambda *call: calls.append(call), **{
            "seconds": 0.4, "width": 64, "height": 32, "steps": 1, name: value})
    assert not calls


@pytest.mark.parametrize("name", ["video", "video_late", "audio", "first_frames_scale"])
def test_guidance_of_no_numbers_is_refused(name):
    for value in (float("nan"), float("inf"), "5", True):
        with pytest.raises(InputError, match=name):
            Guidance(**{name: value})


def test_a_film_of_one_channel_and_odd_size(tmp_path):
    """What cameras and screen recorders write: odd sizes are read, and a rotation that the file tells is done."""
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 33, 65, "gray"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((65, 33), 100, np.uint8), format="gray")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    film = open_video(tmp_path / "a.mkv")
    assert (film.width, film.height, film.count) == (33, 65, 10)
    assert (film.frames(32, 64).tensor().float() - 100).abs().max() <= 2
    with pytest.raises(mh.InputError, match="no sound"):
        from magihuman_core.media.audio_file import load_audio

        load_audio(tmp_path / "a.mkv")


NAN = float("nan")
SMALL = {"width": 64, "height": 32, "steps": 1, "seconds": 0.4}
SPOKEN = (torch.zeros(1, 9000) + 0.1, 24000)
ABSURD = {  # calls with a pipeline, a clip and its folder of models
    "start": lambda p, c, f: p.retake(c, NAN, 0.3),
    "edge": lambda p, c, f: p.dub(c, SPOKEN, mask=(0.5, 0.5, 0.3, 0.3), edge=10**9),
    "edge is '2'": lambda p, c, f: p.dub(c, SPOKEN, mask=(0.5, 0.5, 0.3, 0.3), edge="2"),
    "ellipse": lambda p, c, f: p.dub(c, SPOKEN, mask=("a", 0.5, 0.3, 0.3)),
    "mask is int": lambda p, c, f: p.dub(c, SPOKEN, mask=7),
    "image is int": lambda p, c, f: p.generate(PROMPT, image=7, **SMALL),
    "image is ndarray": lambda p, c, f: p.generate(PROMPT, image=np.zeros((9, 9, 3), np.uint8), **SMALL),
    "keyframes is list": lambda p, c, f: p.generate(PROMPT, keyframes=[c], **SMALL),
    "prompt": lambda p, c, f: p.generate(b"abc", **SMALL),
    "negative prompt": lambda p, c, f: p.generate(PROMPT, mode="base", negative=7, **SMALL),
    "guidance is 5.0": lambda p, c, f: p.generate(PROMPT, mode="base", guidance=5.0, **SMALL),
    "seeds is 7": lambda p, c, f: next(p.generate_seeds(PROMPT, 7, **SMALL)),
    "tile is x": lambda p, c, f: opened(f, tile="x").generate(PROMPT, **SMALL),
    "tile is nan": lambda p, c, f: opened(f, tile=NAN).generate(PROMPT, **SMALL),
    "dtype is 'bf16'": lambda p, c, f: opened(f, dtype="bf16").generate(PROMPT, **SMALL),
    "loras": lambda p, c, f: opened(f, loras=["a.safetensors"]).generate(PROMPT, **SMALL),
    "folder of models is int": lambda p, c, f: opened(7),
    "folder of models": lambda p, c, f: opened("a" * 5000),
    "no such folder|folder of models": lambda p, c, f: opened("a\0b"),
    "possible name of a file": lambda p, c, f: opened(f, parts={"distilled": "a\0"}),
    "possible name": lambda p, c, f: c.save("a\0.mp4"),
    "The sound that came is str": lambda p, c, f: list(p.stream(["abc"], rate=24000, prompt=PROMPT, width=64,
                                                                height=32, steps=1)),
    "possible name of a video": lambda p, c, f: p.dub("a\0.mp4", SPOKEN),
    "audio is int": lambda p, c, f: p.generate(PROMPT, audio=7, **SMALL),
}


def opened(folder, **options):
    return MagiHumanPipeline.from_folder(folder, device="cpu", **options)


@pytest.fixture(scope="module")
def clip(pipeline):
    return pipeline.generate(PROMPT, **SMALL)


@pytest.mark.parametrize("words", ABSURD)
def test_what_nobody_can_mean_is_said_and_raises_nothing_of_a_library(pipeline, clip, random_models, words):
    with pytest.raises((InputError, CheckpointError), match=words):
        ABSURD[words](pipeline, clip, random_models)
