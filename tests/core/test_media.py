"""Images, audio and mp4 files against recorded numbers, and as other programs see them."""

import json
import math
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from magihuman_core.errors import InputError
from magihuman_core.media.audio_file import load_audio
from magihuman_core.media.image import crop_box, fit_image, frames_to_uint8, load_image, to_rgb
from magihuman_core.media.mp4 import add_video, check_output, video_frame, write_mp4
from magihuman_core.media.waveform import to_stereo
from magihuman_core.pipeline.request import read_image
from magihuman_core.recipes import upscaled_size
from magihuman_core.sizes import audio_length, decoded_frames, floor_size, latent_frames

from .golden import DATA as ALL_DATA
from .golden import full_disk, names

DATA = ALL_DATA / "helpers"
PREP = json.loads((DATA / "image_prep.json").read_text())
MISC = json.loads((DATA / "misc.json").read_text())


# Images


@pytest.mark.parametrize("row", [r for r in PREP["rows"] if not r["returned_unchanged"]], ids=str)
def test_crop_is_the_references(row):
    height, width = row["target_hw"]
    box = crop_box(*row["image_wh"], width, height)
    assert list(box) == row["crop_box_ltrb"]
    assert list(Image.new("L", row["image_wh"]).crop(box).size) == row["cropped_image_wh"]


@pytest.mark.parametrize("index", range(len(PREP["small"])))
def test_fitted_image_is_the_references(index):
    vectors = load_file(DATA / "image_prep.safetensors")
    height, width = PREP["small"][index]["target_hw"]
    image = Image.fromarray(vectors[f"img{index}.rgb"].numpy())
    fitted = fit_image(image, width, height)
    assert fitted.shape == (1, 3, 1, height, width)
    torch.testing.assert_close(fitted[:, :, 0], vectors[f"img{index}.preprocessed"], atol=1e-5, rtol=0)


def test_image_of_the_right_size_is_not_touched():
    pixels = noise_frames(1, 32, 64)[0]
    fitted = fit_image(Image.fromarray(pixels.numpy()), 64, 32)
    given_back = ((fitted[0, :, 0] + 1) * 127.5).permute(1, 2, 0)
    torch.testing.assert_close(given_back, pixels.float(), atol=1e-4, rtol=0)


def test_float_frames_become_bytes_as_in_the_reference():
    vectors = load_file(DATA / "misc.safetensors")
    torch.testing.assert_close(frames_to_uint8(vectors["to_uint8.video"]), vectors["to_uint8.out_THWC"])


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(40, 3000)] * 2), st.tuples(*[st.integers(1, 60)] * 2))
def test_crop_is_centred_inside_and_of_the_targets_aspect(size, target):
    width, height = (32 * n for n in target)
    left, top, right, bottom = crop_box(*size, width, height)
    assert 0 <= left <= right <= size[0]
    assert 0 <= top <= bottom <= size[1]
    assert left + right == size[0]
    assert top + bottom == size[1]
    assert (right - left) == size[0] or (bottom - top) == size[1]
    # Only the side that is cut is rounded, and down by less than a pixel.
    assert abs((right - left) * height - (bottom - top) * width) <= max(width, height)


def test_photograph_is_turned_as_its_camera_says(tmp_path, photograph):
    upright = load_image(photograph)
    assert upright.mode == "RGB"
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise to see it upright
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    assert load_image(tmp_path / "turned.png").tobytes() == upright.tobytes()


def test_transparent_parts_are_white(tmp_path):
    image = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    image.putpixel((3, 3), (10, 20, 30, 255))
    image.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert to_rgb(image).tobytes() == loaded.tobytes()
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.getpixel((3, 3)) == (10, 20, 30)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "LA", "1", "I;16"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 128 * 256, np.uint16))
    else:
        image = Image.new("L", (8, 8), 128).convert(mode)
    name = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(name)
    loaded = load_image(name)
    assert loaded.mode == "RGB"
    grey = loaded.convert("L").getpixel((0, 0))
    assert grey in (0, 255) if mode == "1" else abs(grey - 128) <= 2


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_an_image_in_memory_is_treated_as_its_file_is(tmp_path, mode):
    image = Image.new("RGBA", (8, 6), (200, 0, 0, 0)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    from_file, from_memory = map(read_image, (tmp_path / "a.png", Image.open(tmp_path / "a.png")))
    assert from_memory.mode == "RGB" and from_memory.size == (6, 8)
    assert from_memory.tobytes() == from_file.tobytes()


# Audio


def tone(rate: int, seconds: float, channels: int = 2, frequency: float = 330.0) -> np.ndarray:
    """[samples, channels], each channel louder than the one before."""
    wave = np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)
    return (wave[:, None] * np.linspace(0.2, 0.6, channels)).astype(np.float32)


@pytest.mark.parametrize(("rate", "channels", "subtype", "tolerance"),
                         [(44100, 2, "FLOAT", 0), (22050, 1, "PCM_16", 1e-4), (8000, 1, "PCM_U8", 1e-2),
                          (48000, 2, "PCM_24", 1e-6)])
def test_wav_comes_back_as_it_was_written(tmp_path, rate, channels, subtype, tolerance):
    wave = tone(rate, 0.3, channels)
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype=subtype)
    audio, found = load_audio(tmp_path / "a.wav")
    assert found == rate
    assert audio.shape == (2, len(wave))
    torch.testing.assert_close(audio, torch.from_numpy(wave.T).expand(2, -1), atol=tolerance, rtol=0)


@pytest.mark.parametrize("channels", [3, 4, 6, 7, 8, 12])
def test_any_number_of_channels_is_mixed_as_in_memory(tmp_path, channels):
    wave = tone(44100, 0.1, channels)
    soundfile.write(tmp_path / "a.wav", wave, 44100, subtype="FLOAT")
    expected = to_stereo(torch.from_numpy(wave.T))
    torch.testing.assert_close(load_audio(tmp_path / "a.wav")[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3"])
def test_other_formats(tmp_path, suffix):
    wave = tone(44100, 0.5)
    soundfile.write(tmp_path / f"a{suffix}", wave, 44100)
    audio, rate = load_audio(tmp_path / f"a{suffix}")
    assert rate == 44100
    assert abs(audio.shape[1] - len(wave)) <= 1152
    n = min(audio.shape[1], len(wave))
    assert np.corrcoef(audio[1, :n], wave[:n, 1])[0, 1] > 0.99


LIKE_PYAV = [("wav", "PCM_U8"), ("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "PCM_32"), ("wav", "FLOAT"),
             ("wav", "DOUBLE"), ("flac", "PCM_S8"), ("flac", "PCM_16"), ("flac", "PCM_24")]


@pytest.mark.parametrize(("form", "subtype"), LIKE_PYAV)
@pytest.mark.parametrize(("channels", "seconds"), [(1, None), (2, 0.1), (6, None), (2, 0), (3, 9)])
def test_soundfile_and_pyav_give_the_same_samples(tmp_path, monkeypatch, form, subtype, channels, seconds):
    generator = np.random.default_rng(channels)
    wave = generator.uniform(-1, 1, (9000, channels))
    wave[:2] = [[-1], [1]]
    path = tmp_path / f"a.{form}"
    soundfile.write(path, wave, 32000, subtype=subtype)
    read = []
    if form == "wav" or channels <= 2:  # other files name their channels, which PyAV alone tells
        monkeypatch.setattr("av.open", lambda *_: pytest.fail("PyAV was asked"))
    for installed in (True, False):
        if not installed:
            monkeypatch.undo()
            monkeypatch.setitem(sys.modules, "soundfile", None)
        audio, rate = load_audio(path, seconds)
        assert rate == 32000
        read.append(audio)
    assert read[0].shape == (2, 9000 if seconds in (None, 9) else round(32000 * seconds))
    assert torch.equal(*read)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_damaged_recording_is_what_it_is_without_soundfile(tmp_path, monkeypatch, suffix):
    soundfile.write(tmp_path / f"whole{suffix}", tone(16000, 2), 16000)
    (tmp_path / f"a{suffix}").write_bytes((tmp_path / f"whole{suffix}").read_bytes()[:30011])
    with_soundfile, _ = load_audio(tmp_path / f"a{suffix}")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert torch.equal(with_soundfile, load_audio(tmp_path / f"a{suffix}")[0])


# Video


def noise_frames(count: int, height: int = 48, width: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("count", "fps"), [(25, 25), (33, 25), (7, Fraction(30000, 1001))])
def test_video_and_audio_of_a_file_are_equally_long(tmp_path, count, fps):
    samples = round(count * 44100 / fps)
    wave = torch.from_numpy(tone(44100, 3).T)
    write_mp4(tmp_path / "a.mp4", noise_frames(count), wave, fps=fps, metadata={"magihuman": "{}"})
    assert names(tmp_path) == ["a.mp4"]
    with av.open(str(tmp_path / "a.mp4")) as file:
        video, audio_track = file.streams.video[0], file.streams.audio[0]
        assert video.codec_context.name == "h264"
        assert video.codec_context.pix_fmt == "yuv420p"
        assert audio_track.codec_context.name == "aac"
        assert (audio_track.codec_context.sample_rate, audio_track.codec_context.layout.name) == (44100, "stereo")
        assert (video.frames, video.average_rate) == (count, fps)
        assert video.duration * video.time_base == count / Fraction(fps)
        # An mp4 keeps the length of a track in milliseconds.
        assert abs(audio_track.duration * audio_track.time_base - Fraction(samples, 44100)) < Fraction(1, 1000)
        assert sum(1 for _ in file.decode(video)) == count
        assert file.metadata["magihuman"] == "{}"
    audio, _ = load_audio(tmp_path / "a.mp4")
    for channel in range(2):  # AAC changes little, and shifts nothing
        assert np.corrcoef(audio[channel, :samples], wave[channel, :samples])[0, 1] > 0.99


def test_the_index_stands_before_the_frames(tmp_path):
    write_mp4(tmp_path / "a.mp4", noise_frames(30), torch.zeros(2, 44100))
    data = (tmp_path / "a.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    # FFmpeg moved the frames by reading the file: they are what an encoder gives that moves nothing.
    with av.open(str(tmp_path / "a.mp4")) as file:
        moved = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    with av.open(str(tmp_path / "b.mp4"), "w", format="mp4") as file:
        stream = add_video(file, 64, 48, Fraction(25))
        for number, frame in enumerate(noise_frames(30)):
            file.mux(stream.encode(video_frame(frame, number, Fraction(25))))
        file.mux(stream.encode(None))
    with av.open(str(tmp_path / "b.mp4")) as file:
        assert [bytes(packet) for packet in file.demux(video=0) if packet.size] == moved


def test_audio_that_ends_early_is_followed_by_silence(tmp_path):
    write_mp4(tmp_path / "a.mp4", noise_frames(25), torch.from_numpy(tone(44100, 0.4).T))
    audio, _ = load_audio(tmp_path / "a.mp4")
    assert audio[:, 2000:16000].abs().max() > 0.4
    assert audio[:, 20000:].abs().max() < 0.01


def test_colours_are_bt709_in_numbers_and_in_tags(tmp_path):
    red, green, blue = 200, 30, 90
    frames = torch.zeros((3, 64, 64, 3), dtype=torch.uint8)
    frames[:] = torch.tensor([red, green, blue], dtype=torch.uint8)
    write_mp4(tmp_path / "a.mp4", frames, None)
    with av.open(str(tmp_path / "a.mp4")) as file:
        context = file.streams.video[0].codec_context
        frame = next(file.decode(video=0))
    assert context.colorspace == context.color_primaries == context.color_trc == context.color_range == 1
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue  # ITU-R BT.709, limited range
    expected = (16 + 219 / 255 * luma, 128 + 224 / 255 * (blue - luma) / 1.8556,
                128 + 224 / 255 * (red - luma) / 1.5748)
    for plane, value in zip(frame.planes, expected, strict=True):
        assert np.abs(np.frombuffer(plane, np.uint8)[: plane.width].astype(float) - value).max() <= 2


def test_frames_are_read_one_by_one(tmp_path):
    """An iterator is never held: at no time do many of its frames exist."""
    alive, most = set(), 0

    class Frame(torch.Tensor):
        def __del__(self):
            alive.discard(id(self))

    def frames():
        nonlocal most
        for frame in noise_frames(60):
            frame = frame.clone().as_subclass(Frame)
            alive.add(id(frame))
            most = max(most, len(alive))
            yield frame

    write_mp4(tmp_path / "a.mp4", frames(), None)
    assert most <= 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_file_leaves_nothing_and_keeps_the_old_one(tmp_path, error):
    (tmp_path / "a.mp4").write_bytes(b"the clip of before")

    def frames():
        yield from noise_frames(20)
        raise error

    with pytest.raises(error):
        write_mp4(tmp_path / "a.mp4", frames(), torch.zeros(2, 100))
    assert names(tmp_path) == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"the clip of before"


@pytest.mark.parametrize("limit", [0, 100, 3000, 4096, 50_000])
def test_full_disk_leaves_nothing_and_is_named(tmp_path, limit, capfd):
    refused = pytest.raises(InputError, match=r"a\.mp4: cannot be written \(File too large\).*choose another folder\.$")
    with full_disk(limit), refused:
        write_mp4(tmp_path / "a.mp4", noise_frames(30, 64), torch.zeros(2, 44100))
    assert names(tmp_path) == []
    assert "Traceback" not in capfd.readouterr().err  # PyAV prints some


@pytest.mark.parametrize(("frames", "word"), [
    (noise_frames(0), "no frames"),
    (noise_frames(2, 31, 64), "even sizes"),
    ([*noise_frames(2), noise_frames(1, 32, 64)[0]], "frame 2"),
    (noise_frames(2).float(), "uint8"),
])  # fmt: skip
def test_frames_that_cannot_be_written(tmp_path, frames, word):
    with pytest.raises(InputError, match=word):
        write_mp4(tmp_path / "a.mp4", frames, None)
    assert names(tmp_path) == []


def test_output_name_is_checked_without_leaving_anything(tmp_path):
    assert check_output(tmp_path / "new" / "a.mp4") == tmp_path / "new" / "a.mp4"
    assert names(tmp_path / "new") == []
    (tmp_path / "file").touch()
    for name, word in (("a.avi", "ends in .mp4"), ("file/a.mp4", "cannot be written"), ("new", "mp4")):
        with pytest.raises(InputError, match=word):
            check_output(tmp_path / name)


# Sizes


@pytest.mark.parametrize("row", MISC["frames"], ids=str)
def test_lengths_are_the_references(row):
    tokens = audio_length(row["seconds"])
    assert tokens == row["audio_tokens"]
    assert latent_frames(tokens) == row["video_latent_T"]
    assert decoded_frames(latent_frames(tokens)) == row["video_frames_decoded"]


@pytest.mark.parametrize("row", MISC["sizes"], ids=str)
def test_sizes_are_the_references(row, caplog):
    asked = (row["width"], row["height"])
    floored = floor_size(*asked)
    assert list(floored) == row["pixel_hw"][::-1]
    assert bool(caplog.records) == (floored != asked)


@pytest.mark.parametrize(("base", "target", "expected"), [
    ((448, 256), "540p", (896, 512)), ((448, 256), "1080p", (1920, 1088)),
    ((256, 448), "1080p", (1088, 1920)), ((384, 384), "540p", (672, 672)),
    ((448, 256), (1000, 600), (992, 576)),
])  # fmt: skip
def test_upscaled_size(base, target, expected):
    assert upscaled_size(*base, target) == expected


@pytest.mark.parametrize(("function", "arguments", "name"), [
    (floor_size, (0, 64), "width"), (floor_size, (64, 31), "height"), (floor_size, (64.0, 64), "width"),
    (floor_size, (True, 64), "width"),
    *((audio_length, (value,), "seconds") for value in (0, -3, math.nan, math.inf, "4")),
    *((upscaled_size, (448, 256, target), "upscale") for target in ("4k", (1, 2, 3), 540)),
])  # fmt: skip
def test_impossible_sizes_are_refused(function, arguments, name):
    with pytest.raises(InputError, match=rf"{name} is .*expected"):
        function(*arguments)
