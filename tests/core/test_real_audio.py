"""Recordings as people bring them: nothing of them is lost, turned into noise, or refused for what is beside them."""

import struct
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
import torch

from magihuman_core.errors import InputError
from magihuman_core.media.audio_file import load_audio
from magihuman_core.media.waveform import as_audio, resample, resample_recording
from magihuman_core.pipeline.request import read_audio

RATE = 24000


def tone(seconds: float, rate: int = RATE, level: float = 0.5, frequency: float = 330.0) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def wav(samples: np.ndarray, *, channels: int = 1, rate: int = RATE, kind: int = 1, chunks: bytes = b"") -> bytes:
    """A WAV of int16 with more chunks before its samples."""
    data = (samples * 32767).astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * 2 & 0xFFFFFFFF, channels * 2 & 0xFFFF, 16)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + chunks + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def title(text: bytes) -> bytes:
    text += b"\0" * (len(text) % 2)
    content = b"INFOINAM" + struct.pack("<I", len(text)) + text
    return b"LIST" + struct.pack("<I", len(content)) + content


@pytest.fixture(params=[True, False], ids=["soundfile", "PyAV"])
def reader(request, monkeypatch):
    """Both ways in which a WAV is read."""
    if not request.param:
        monkeypatch.setitem(sys.modules, "soundfile", None)


def test_titles_in_any_encoding(tmp_path, reader):
    (tmp_path / "a.wav").write_bytes(wav(tone(0.2), chunks=title(b"Caf\xe9 \xff\xfe\x80")))
    audio, rate = load_audio(tmp_path / "a.wav")
    assert rate == RATE and np.abs(audio[0].numpy() - tone(0.2)).max() < 1e-3


@pytest.mark.parametrize("name", ["10:30.wav", "http:x.wav", "caf\u00e9 \U0001f600.wav", "%d.wav", "-.wav",
                                  "a b'\".wav"])
def test_any_name(tmp_path, monkeypatch, name, reader):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(wav(tone(0.2)))
    assert load_audio(name)[0].shape == (2, 4800)


def test_a_name_that_is_no_text(tmp_path, reader):
    name = tmp_path / "caf\udce9.wav"
    try:
        name.write_bytes(wav(tone(0.2)))
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    assert load_audio(name)[0].shape == (2, 4800)


@pytest.mark.parametrize(("change", "words"), [
    ({"channels": 65535}, ""), ({"rate": 1}, "sampling rate 1"), ({"rate": 4_000_000_000}, ""),
    ({"kind": 0x7777}, "not known here"), ({"rate": 0}, "")])
def test_what_no_recording_has(tmp_path, reader, change, words):
    (tmp_path / "a.wav").write_bytes(wav(tone(0.5), **change))
    with pytest.raises(InputError, match=rf"a\.wav: .*{words}"):
        load_audio(tmp_path / "a.wav")


def test_a_playlist_opens_nothing(tmp_path):
    (tmp_path / "secret.wav").write_bytes(wav(tone(0.5)))
    for name, text in (("a.wav", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n"),
                       ("b.wav", "ffconcat version 1.0\nfile secret.wav\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=name):
            load_audio(tmp_path / name)


def mp3(path, samples: np.ndarray, channels: int = 1) -> bytes:
    soundfile.write(path, np.stack([samples] * channels, 1), RATE, format="MP3")
    return path.read_bytes()


def test_random_bytes_in_the_middle_of_an_mp3(tmp_path, caplog):
    data = bytearray(mp3(tmp_path / "a.mp3", tone(4)))
    whole = load_audio(tmp_path / "a.mp3")[0].shape[1]
    middle = len(data) // 2
    data[middle : middle + 600] = np.random.default_rng(0).bytes(600)
    (tmp_path / "a.mp3").write_bytes(data)
    audio, _ = load_audio(tmp_path / "a.mp3")
    assert whole - 12000 < audio.shape[1] <= whole
    assert audio[0, -20000:-4000].abs().max() > 0.4  # what follows is heard


@pytest.mark.parametrize("codec", ["pcm_s16le", "libopus"])
def test_where_sound_is_missing_it_is_silent_and_what_follows_keeps_its_time(tmp_path, caplog, codec):
    """As a browser records a call: 0.5 s of tone, 0.8 s of nothing, 0.7 s of tone."""
    path, rate = tmp_path / "call.mkv", 48000
    samples = (tone(2, rate) * 32767).astype("<i2")
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        stream.codec_context.format = "s16"
        for start in range(0, 2 * rate, 960):
            if not 24000 <= start < 62400:
                frame = av.AudioFrame.from_ndarray(samples[None, start : start + 960], format="s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
                file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    audio, rate = load_audio(path)
    assert abs(audio.shape[1] - 2 * rate) <= 0.03 * rate
    level = audio[0].unfold(0, rate // 50, rate // 50).square().mean(1).sqrt()  # 50 a second
    assert level[2:23].min() > 0.2
    assert level[28:62].max() < 0.01
    assert level[68:96].min() > 0.2
    assert "0.8 s of its sound are missing" in caplog.text


def test_an_mp3_that_becomes_stereo(tmp_path):
    one, two = (mp3(tmp_path / "x.mp3", tone(2), channels) for channels in (1, 2))
    (tmp_path / "a.mp3").write_bytes(one + two)
    audio, rate = load_audio(tmp_path / "a.mp3")
    assert 3.8 < audio.shape[1] / rate < 4.4
    for part in (audio[:, 8000:40000], audio[:, -40000:-8000]):
        assert (part[0] - part[1]).abs().max() < 0.02 and part.abs().max() == pytest.approx(0.5, abs=0.05)


def film(path, sounds: list[np.ndarray], default: int, form: str = "matroska") -> None:
    with av.open(str(path), "w", format=form) as container:
        streams = [container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in sounds]
        for number, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default.value if number == default else 0
        for stream, sound in zip(streams, sounds, strict=True):
            frame = av.AudioFrame.from_ndarray((sound * 32767).astype(np.int16)[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


@pytest.mark.parametrize("default", [0, 1, 2])
def test_of_several_tracks_the_default_one_is_heard(tmp_path, default):
    levels = [0.2, 0.4, 0.6]
    film(tmp_path / "a.mka", [tone(0.5, level=level) for level in levels], default)
    assert load_audio(tmp_path / "a.mka")[0].abs().max() == pytest.approx(levels[default], abs=0.01)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.int16, 2**15), (torch.int32, 2**31), (torch.int8, 2**7),
                                              (torch.float64, 1), (torch.float16, 1), (torch.bfloat16, 1)])
def test_samples_of_any_dtype_have_one_level(dtype, scale):
    sound = torch.from_numpy(tone(0.5)).double()
    given = (sound * scale).round().to(dtype) if scale > 1 else sound.to(dtype)
    audio, rate = read_audio((given[None], RATE), None)
    assert rate == RATE and audio.dtype == torch.float32
    torch.testing.assert_close(audio, sound.float().expand(2, -1), atol=0.01, rtol=0)


def test_unsigned_bytes_have_their_zero_in_the_middle():
    given = (torch.from_numpy(tone(0.5)) * 128 + 128).to(torch.uint8)
    torch.testing.assert_close(as_audio(given[None], RATE, "a")[0][0], torch.from_numpy(tone(0.5)), atol=0.01, rtol=0)


def test_an_array_is_taken_too():
    audio, _ = read_audio(((tone(0.5) * 32767).astype(np.int16)[None], RATE), None)  # type: ignore[arg-type]
    assert audio.abs().max() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_named(tmp_path, bad, reader):
    samples = tone(0.5)
    samples[77] = bad
    for given in (lambda: read_audio((torch.from_numpy(samples)[None], RATE), None),
                  lambda: load_audio(tmp_path / "a.wav")):
        soundfile_written = tmp_path / "a.wav"
        soundfile_written.write_bytes(float_wav(samples))
        with pytest.raises(InputError, match="not numbers"):
            given()


def float_wav(samples: np.ndarray) -> bytes:
    data = samples.astype("<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 1, RATE, RATE * 4, 4, 32)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(("peak", "said"), [(0.9, False), (1.02, False), (2.0, True), (3e4, True)])
def test_what_is_louder_than_full_scale_is_made_quieter_and_not_clipped(tmp_path, reader, peak, said, caplog):
    (tmp_path / "a.wav").write_bytes(float_wav(tone(0.5, level=peak)))
    audio, _ = load_audio(tmp_path / "a.wav")
    expected = tone(0.5, level=min(peak, 1.0))
    assert np.abs(audio[0].numpy() - expected).max() < 1e-3
    assert any(record.levelname == "WARNING" for record in caplog.records) == said


def test_silence_is_said(tmp_path, caplog):
    (tmp_path / "a.wav").write_bytes(wav(np.zeros(5000)))
    assert not load_audio(tmp_path / "a.wav")[0].any()
    assert "silent" in caplog.text


@pytest.mark.parametrize("given", [
    (torch.zeros(2, 5000), 0), (torch.zeros(2, 5000), float("nan")), (torch.zeros(2, 5000), "44100"),
    (torch.zeros(2, 5000), 1e12), (torch.zeros(2, 5000), True), (torch.zeros(2, 5000, dtype=torch.int64), RATE),
    (torch.zeros(2, 5000, dtype=torch.complex64), RATE), (torch.zeros(70, 5000), RATE), (torch.zeros(5000), RATE),
    (torch.zeros(2, 5000, dtype=torch.bool), RATE), 7, (torch.zeros(2, 5000),)])
def test_audio_in_memory_that_is_none(given):
    with pytest.raises(InputError, match=r"[Aa]udio"):
        read_audio(given, None)


@pytest.mark.parametrize(("rate", "other"), [(44100, 51200), (48000, 51200), (16000, 51200), (8000, 44100),
                                             (44099, 51200), (192000, 44100), (51200, 44100)])
def test_a_loud_end_does_not_click_at_the_start(rate, other):
    """-19 dBFS, where the waveform was taken for a period."""
    sound = torch.zeros(2, rate)
    sound[:, -rate // 10 :] = torch.from_numpy(tone(0.1, rate, 1.0, 1000))
    sound[:, -1] = 1.0
    assert resample(sound, rate, other)[:, :200].abs().max() > 0.05
    given = resample_recording(sound, rate, other)
    assert given[:, : other // 2].abs().max() < 0.002
    assert given.shape[1] == rate * other // rate


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000, 192000])
def test_a_recording_keeps_its_tone_up_to_its_ends(rate):
    given = resample_recording(torch.from_numpy(tone(0.5, rate)), rate, 51200)
    wanted = torch.from_numpy(tone(0.5, 51200))
    assert len(given) == len(wanted)
    assert (given - wanted)[300:-300].abs().max() < 0.01


@pytest.mark.parametrize(("codec", "name", "layout"), [
    ("aac", "a.m4a", "3.0"), ("aac", "a.m4a", "4.0"), ("aac", "a.m4a", "5.1"),
    ("ac3", "a.ac3", "3.1"), ("ac3", "a.ac3", "4.0"), ("ac3", "a.ac3", "2.1"), ("flac", "a.flac", "quad"),
    ("flac", "a.flac", "5.0"), ("pcm_s16le", "a.wav", "3.1"), ("pcm_s16le", "a.wav", "quad"),
    ("pcm_s16le", "a.wav", "2.1"), ("pcm_s16le", "a.mkv", "mono"), ("pcm_s16le", "a.wav", "stereo")])
def test_a_voice_is_heard_from_the_channels_of_the_front(tmp_path, codec, name, layout):
    """By the names of the channels: from the centre on both sides, from left and right on one."""
    channels = [channel.name for channel in av.AudioLayout(layout).channels]
    for number, channel in enumerate(channels):
        sound = np.zeros((len(channels), 48000), np.float32)
        sound[number] = tone(1, 48000)
        with av.open(str(tmp_path / name), "w") as file:
            stream = file.add_stream(codec, rate=48000, layout=layout)
            for start in range(0, 48000, 1000):
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, start : start + 1000]), format="fltp",
                                                   layout=layout)
                frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
        audio, _ = load_audio(tmp_path / name)
        left, right = audio[:, 9600:-9600].square().mean(1).sqrt().tolist()
        alone = 0.5 / 2**0.5  # of a sine of this level
        if "FC" in channels and len(channels) > 1:
            alone /= 1 + 0.5**0.5
        wanted = {"FL": (alone, 0), "FR": (0, alone), "FC": (alone * (0.5**0.5 if len(channels) > 1 else 1),) * 2}
        assert (left, right) == pytest.approx(wanted.get(channel, (0, 0)), abs=0.01), (channels, channel)


@pytest.mark.parametrize(("count", "centre"), [(3, True), (4, False), (5, True), (6, True)])
def test_channels_without_names_are_taken_by_their_number(tmp_path, reader, count, centre):
    sound = np.zeros((RATE, count))
    sound[:, 2] = tone(1)
    (tmp_path / "a.wav").write_bytes(wav(sound, channels=count))
    assert (load_audio(tmp_path / "a.wav")[0].abs().max() > 0.1) == centre
