"""A face for a voice that is still being spoken: windows in the order of their sound, through real pipes."""

import errno
import io
import os
import signal
import struct
import subprocess
import time
from pathlib import Path
from threading import Thread

import av
import numpy as np
import pytest
import soundfile
import torch

import magihuman_core as mh
from magihuman_core.cli import main
from magihuman_core.cli.live import Chunks
from magihuman_core.errors import InputError
from magihuman_core.media.live_file import LiveFile
from magihuman_core.model.config import DiTConfig
from magihuman_core.pipeline import stages
from magihuman_core.pipeline.live import AudioBuffer, LatentDecoder
from magihuman_core.pipeline.pipeline import MagiHumanPipeline

from .golden import names
from .test_cli import PROMPT, start
from .test_video_vae_memory import peak_of

SMALL = {"width": 64, "height": 32, "steps": 1, "window": 0.5, "overlap": 0.16}  # 4 latent frames, 1 carried


@pytest.fixture(scope="module")
def pipeline(random_models):
    return MagiHumanPipeline.from_folder(random_models, device="cpu")


def tone(seconds, rate=16000):
    return 0.5 * torch.sin(torch.arange(round(seconds * rate)) * 2 * np.pi * 300 / rate)


def test_windows_come_as_soon_as_their_sound_is_there(pipeline, photograph):
    """15 audio latents and 2 more make the first window."""
    read = []

    def chunks():
        for number in range(100):
            read.append(number)
            yield tone(1.0)[number * 160 : (number + 1) * 160]  # 10 ms

    given, counts = [], []
    for frames, sound in pipeline.stream(chunks(), rate=16000, prompt=PROMPT, image=photograph, seed=3, **SMALL):
        assert frames.dtype == torch.uint8 and frames.shape[1:] == (32, 64, 3)
        assert sound.shape == (2, len(frames) * 640)
        given.append(sound)
        counts.append((len(frames), len(read)))
    assert counts[0] == (9, 68)  # 17 frames of sound have come; one latent frame is held back
    assert counts[1:] == [(16, 100)]  # the end: nothing is held back any more
    assert sum(count for count, _ in counts) == 25
    assert torch.equal(torch.cat(given, 1)[0], tone(1.0))


def test_the_chunks_make_no_difference(pipeline):
    def made(size, convert=lambda x: x):
        stream = pipeline.stream(map(convert, tone(1.3).split(size)), rate=16000, prompt=PROMPT, seed=3, **SMALL)
        return torch.cat([frames for frames, _ in stream])

    whole = made(100_000)
    assert whole.shape[0] == 33
    assert (made(777).int() - whole.int()).abs().max() <= 1
    ints = made(5000, lambda chunk: (chunk * 32768).round().clamp(-32768, 32767).to(torch.int16)[None])
    assert (ints.int() - whole.int()).abs().float().mean() < 1


def test_a_stream_is_used_once(pipeline):
    stream = pipeline.open_stream(prompt=PROMPT, seed=3, **SMALL)
    assert len(list(stream.windows([tone(0.5)], 16000)))
    with pytest.raises(InputError, match="was used already"):
        next(stream.windows([tone(0.5)], 16000))


def test_the_recording_that_is_read_is_not_written_over(random_models, tmp_path):
    voice = tmp_path / "voice.pcm"
    voice.write_bytes(bytes(64000))
    with voice.open("rb") as given:
        process = start("-m", "magihuman_core", "live", "--models", str(random_models), "--prompt", PROMPT,
                        "--out", str(voice), stdin=given)
        said = process.communicate(timeout=100)[1]
    assert process.returncode == 2 and b"is the source itself" in said
    assert voice.read_bytes() == bytes(64000)


def test_each_window_goes_on_from_the_one_before(pipeline):
    """The same seed and sound: the second window differs where the first one did."""
    streams = [list(pipeline.stream([torch.cat([head, tone(0.7)])], rate=16000, prompt=PROMPT, seed=3, **SMALL))
               for head in (tone(0.6), tone(0.6) * 0)]
    assert not torch.equal(streams[0][-1][0], streams[1][-1][0])


@pytest.mark.parametrize("turbo", [True, False])
def test_the_network_leaves_room_for_what_runs_beside_it(turbo, random_models, tmp_path, monkeypatch):
    """The VAEs are there when free memory is looked at, and as much is left as decoding a window was seen to take."""
    for path in random_models.iterdir():
        if turbo or path.name != "turbo_vae":
            (tmp_path / path.name).symlink_to(path)
    loaded, planned = [], []

    def load_decoder(parts, load=stages.load_decoder):
        loaded.append(load(parts))
        return loaded[-1]

    def plan_blocks(config, free, plan=stages.plan_blocks, **options):
        if isinstance(config, DiTConfig):
            planned.append((free, len(loaded)))
        return plan(config, free, **options)

    monkeypatch.setattr(stages, "load_decoder", load_decoder)
    monkeypatch.setattr(stages, "plan_blocks", plan_blocks)
    monkeypatch.setattr(stages, "free_memory", lambda device: 10**9)
    large = {**SMALL, "width": 128, "height": 96, "window": 0.9}
    next(MagiHumanPipeline.from_folder(tmp_path, device="cpu").stream([tone(1)], rate=16000, prompt=PROMPT, **large))
    [(free, decoders)] = planned
    z = torch.zeros(1, 48, 6, 6, 8)
    used = peak_of(lambda z: [LatentDecoder(loaded[0]).decode(z, True)], z)
    assert decoders == 1 and 0.9 * used < 10**9 - free < 2.5 * used


def test_memory_of_sound_does_not_grow():
    buffer = AudioBuffer(16000)
    for second in range(100):
        buffer.append(tone(1.0))
        buffer.forget(25 * second)
    assert buffer.end == 2500 and buffer.samples.shape[1] == 16000
    assert torch.equal(buffer.read(2499, 2501)[0], torch.cat([tone(1.0)[-640:], torch.zeros(640)]))


def test_closing_ends_the_stream_and_no_sound_gives_nothing(pipeline):
    ended = []

    def endless():
        try:
            while True:
                yield tone(0.2)
        finally:
            ended.append(True)

    stream = pipeline.stream(endless(), rate=16000, prompt=PROMPT, **SMALL)
    next(stream)
    stream.close()
    assert ended == [True]
    assert list(pipeline.stream([], rate=16000, prompt=PROMPT, **SMALL)) == []


@pytest.mark.parametrize(("options", "words"), [
    ({"rate": 11024}, "rate is 11024"), ({"rate": 16000, "upscale": "540p"}, "without super-resolution"),
    ({"rate": 16000, "overlap": 0.6}, "cannot carry 4"),
])  # fmt: skip
def test_streams_that_cannot_be(pipeline, options, words):
    with pytest.raises(mh.InputError, match=words):
        next(pipeline.stream([tone(1)], prompt=PROMPT, **{**SMALL, **options}))


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_what_was_written_so_far_is_a_whole_video(container):
    """Cut off in the middle, without an end, it still plays up to there."""
    target = io.BytesIO()
    file = LiveFile(target, 64, 32, 16000, container)
    for _ in range(3):
        file.write(torch.zeros(25, 32, 64, 3, dtype=torch.uint8), tone(1.0).expand(2, -1))
    unfinished = target.getvalue()
    with file:
        pass
    for data, least in ((unfinished, 25), (target.getvalue(), 75)):
        with av.open(io.BytesIO(data)) as film:
            assert sum(1 for _ in film.decode(video=0)) >= least
    with av.open(io.BytesIO(target.getvalue())) as film:
        assert sum(frame.samples for frame in film.decode(audio=0)) >= 3 * 16000


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize(("number", "kind"), [(errno.EINVAL, BrokenPipeError), (errno.EPIPE, BrokenPipeError),
                                              (errno.ENOSPC, OSError)])
def test_a_reader_that_is_gone(container, number, kind):
    """On Windows a closed pipe gives EINVAL. A full disk is no such thing, and stays an error."""
    class Closing(io.BytesIO):
        def write(self, data):
            if self.tell() > 2000:
                raise OSError(number, os.strerror(number))
            return super().write(data)

    with pytest.raises(OSError) as found, LiveFile(Closing(), 64, 32, 16000, container) as file:
        for _ in range(50):
            file.write(torch.randint(255, (25, 32, 64, 3), dtype=torch.uint8), tone(1.0).expand(2, -1))
    assert type(found.value) is kind


ARGUMENTS = ["--width", "64", "--height", "32", "--steps", "1", "--window", "0.5", "--overlap", "0.16", "--device",
             "cpu"]


def live(random_models: Path, *more: str) -> subprocess.Popen:
    process = start("-m", "magihuman_core", "live", "--models", str(random_models), "--prompt", PROMPT, *ARGUMENTS,
                    *more, stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    return process


def decoded(data: bytes) -> tuple[int, float]:
    """Frames, and seconds of sound."""
    with av.open(io.BytesIO(data)) as film:
        count = sum(1 for _ in film.decode(video=0))
    with av.open(io.BytesIO(data)) as film:
        samples = sum(frame.samples for frame in film.decode(audio=0))
        return count, samples / film.streams.audio[0].rate


def test_from_pipe_to_pipe(random_models):
    pcm = (tone(1.3) * 32767).short().numpy().tobytes()
    out, said = live(random_models).communicate(pcm, timeout=250)
    assert out, said.decode()
    count, seconds = decoded(out)
    assert count == 33 and seconds == pytest.approx(33 / 25, abs=0.1)


def test_models_are_loaded_before_any_sound_comes(random_models):
    process = live(random_models, "-v")
    for line in process.stderr:
        if b"The models are loaded" in line:
            break
    else:
        pytest.fail("it ended, or waited for sound first")
    out, said = process.communicate((tone(0.6) * 32767).short().numpy().tobytes(), timeout=250)
    assert decoded(out)[0] == 15, said.decode()


def test_a_growing_wav_in_stereo():
    wav = io.BytesIO()
    sound = tone(1.0, 24000).expand(2, -1)
    soundfile.write(wav, sound.T.numpy(), 24000, subtype="PCM_16", format="WAV")
    data = bytearray(wav.getvalue())
    at = data.index(b"data")
    data[at + 4 : at + 8] = b"\xff\xff\xff\xff"  # as a recorder writes it that does not know the end
    chunks = Chunks(io.BytesIO(bytes(data)), 16000, 1, fill=False)
    read = torch.cat(list(chunks), 1)
    assert chunks.rate == 24000 and read.shape == (2, 24000)
    torch.testing.assert_close(read / 32768, sound, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("change", "words"), [
    ({"channels": 0}, "0 channels"), ({"channels": 65535}, "65535 channels"), ({"form": 15}, "15 bytes"),
    ({"form": 1 << 31}, "bytes"), ({"title": 0xFFFFFFF0}, "ends within"),
    ({"rate": 4_000_000_000}, "samples per second"), ({"rate": 0}, "0 samples per second"),
    ({"rate": 192_000}, "192000 samples per second")])
def test_a_wav_whose_header_is_absurd(change, words):
    form = struct.pack("<HHIIHH", 1, change.get("channels", 1), change.get("rate", 24000), 48000, 2, 16)
    title = b"LIST" + struct.pack("<I", change.get("title", 4)) + b"abcd"
    data = b"RIFF\0\0\0\0WAVE" + title + b"fmt " + struct.pack("<I", change.get("form", 16)) + form + b"data\0\0\0\0"
    with pytest.raises(InputError, match=words):
        _ = Chunks(io.BytesIO(data + bytes(1000)), 16000, 1, fill=False).rate


@pytest.mark.parametrize(("length", "heard"), [(2000, 1000), (0, 1018), (0xFFFFFFFF, 1018)])
def test_titles_behind_the_sound_of_a_finished_wav_are_not_heard(length, heard):
    """Where its header says how long the sound is, and that something follows."""
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 24000, 48000, 2, 16)
    title = b"LIST" + struct.pack("<I", 28) + b"t" * 28
    head = b"WAVE" + form + b"data" + struct.pack("<I", length)
    data = b"RIFF" + struct.pack("<I", len(head) + 2000 + len(title)) + head + bytes(2000) + title
    found = torch.cat(list(Chunks(io.BytesIO(data), 16000, 1, fill=False)), 1)
    assert found.shape == (1, heard)


@pytest.mark.parametrize("head", [b"ID3\x04\0\0\0\0", b"fLaC\0\0\0\x22", b"OggS\0\x02\0\0", b"\0\0\0\x20ftypM4A ",
                                  b"RF64\xff\xff\xff\xffWAVE", b"\x1aE\xdf\xa3\x9fB\x86\x81"])
def test_packed_sound_is_not_heard_as_noise(head):
    with pytest.raises(InputError, match="neither 16-bit PCM nor a WAV"):
        _ = Chunks(io.BytesIO(head + bytes(1000)), 16000, 1, fill=False).rate


@pytest.mark.parametrize(("given", "words"), [
    (["--rate", "16001"], "16001 samples"), (["--rate", "40000"], "40000 samples"), (["--overlap", "10"], "carry"),
    (["--overlap", "-1"], "verlap"), (["--out", "."], "is a folder"), (["--audio", "voice.mp3"], "neither")])
def test_what_cannot_be_is_said_before_models_are_loaded(random_models, tmp_path, monkeypatch, capsys, given, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "encode_texts", None)
    kept = tmp_path / "out.mp4"
    kept.write_bytes(b"mine")
    (tmp_path / "voice.pcm").write_bytes(bytes(64000))
    (tmp_path / "voice.mp3").write_bytes(b"\xff\xfb\x90\0" + bytes(64000))
    assert main(["live", "--models", str(random_models), "--prompt", PROMPT, "--audio", "voice.pcm", "--out", "out.mp4",
                 *given]) == 2
    assert words in capsys.readouterr().err
    assert kept.read_bytes() == b"mine"


def test_a_video_is_not_written_into_a_terminal(random_models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "isatty", lambda number: number == 1)
    assert main(["live", "--models", str(random_models), "--prompt", PROMPT]) == 2
    assert "--out" in capsys.readouterr().err


def test_sound_that_comes_is_by_its_range_and_a_number():
    buffer = AudioBuffer(25)
    for chunk in (torch.tensor([16384], dtype=torch.int16), torch.tensor([1 << 30], dtype=torch.int32),
                  torch.tensor([192], dtype=torch.uint8), torch.tensor([0.5])):
        buffer.append(chunk)
    assert torch.equal(buffer.samples, torch.full((2, 4), 0.5))
    for bad in (torch.tensor([float("nan")]), torch.tensor([1], dtype=torch.int64)):
        with pytest.raises(InputError, match="sound that came"):
            buffer.append(bad)


def test_an_error_while_sound_is_read_is_raised_where_it_is_taken():
    class Broken(io.BytesIO):
        def read(self, size=-1):
            if self.tell() >= 12800:
                raise OSError(5, "Input/output error")
            return super().read(size)

    found = []

    def take():
        try:
            found.extend(Chunks(Broken(bytes(99_999)), 16000, 1, fill=False))
        except OSError as error:
            found.append(error)

    thread = Thread(target=take, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert sum(chunk.shape[1] for chunk in found[:-1]) == 6406 and found[-1].errno == 5


@pytest.mark.parametrize("cut", [16, 30, 40])
def test_a_wav_that_is_cut_off_ends_the_process(cut, random_models, tmp_path):
    """Not only the command: no thread is left that the process would wait for."""
    wav = io.BytesIO()
    soundfile.write(wav, np.zeros(2400), 24000, subtype="PCM_16", format="WAV")
    path = tmp_path / "cut.wav"
    path.write_bytes(wav.getvalue()[:cut])
    process = live(random_models, "--audio", str(path))
    assert process.wait(30) == 2
    assert b"The WAV ends within its header" in process.stderr.read()


def test_silence_is_filled_in_where_no_sound_comes():
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", 0) as source, os.fdopen(writer, "wb", 0) as sink:
        sink.write(np.full(6400, 1000, "<i2").tobytes())
        chunks = iter(Chunks(source, 16000, 1, fill=True))
        heard = torch.cat([next(chunks) for _ in range(6)], 1)
    assert heard[0, :6400].eq(1000).all() and heard[0, 6400:].eq(0).all() and heard.shape[1] > 6400


@pytest.mark.parametrize(("content", "words"), [
    (b"", "No sound came."), (b"RIFF\x10\0\0\0WAVEfmt ", "ends within its header"),
])  # fmt: skip
def test_sound_that_is_none_is_said_at_once(random_models, tmp_path, capsys, content, words):
    (tmp_path / "a.wav").write_bytes(content)
    assert main(["live", "--models", str(random_models), "--prompt", PROMPT, "--audio", str(tmp_path / "a.wav"),
                 "--out", str(tmp_path / "out.mp4")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("magihuman: ") and words in said
    assert names(tmp_path) == ["a.wav"]


def test_an_interrupted_stream_ends_well(random_models):
    process = live(random_models)
    process.stdin.write((tone(1.3) * 32767).short().numpy().tobytes())
    process.stdin.flush()
    head = process.stdout.read(1)  # the first window is there, and more sound is waited for
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(60) == 0, process.stderr.read().decode()
    assert decoded(head + rest)[0] >= 9
    assert b"stopped" in process.stderr.read()
