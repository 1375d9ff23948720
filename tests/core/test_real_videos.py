"""Videos as phones, screen recorders and editors write them."""

import enum
import struct
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from magihuman_core.errors import InputError
from magihuman_core.media import audio_file, container
from magihuman_core.media.audio_file import load_audio
from magihuman_core.media.container import best_stream
from magihuman_core.media.video_file import open_video

from .golden import in_fresh_process, memory_of_process

CLOCK = Fraction(1, 1000)


def film(path, times: list[int], *, codec: str = "libx264", size=(64, 48), form: str | None = None, tail: int = 40,
         **options: str) -> None:
    """Frames of rising brightness at these milliseconds: frame at t has 10 + t / 20."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=1000, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = {"libx265": "yuv420p10le", "ffv1": "gray"}.get(codec, "yuv420p")
        stream.time_base = stream.codec_context.time_base = CLOCK
        for time in times:
            level = np.full((size[1], size[0], 3), min(255, 10 + time // 20), np.uint8)
            frame = av.VideoFrame.from_ndarray(level, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = time, CLOCK
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def levels(path) -> np.ndarray:
    found = open_video(path)
    return found.frames(64, 32).tensor().float().mean((1, 2, 3)).numpy()


@pytest.mark.parametrize("name", ["steady", "varying", "a gap", "twice as fast", "late start"])
def test_frames_are_shown_at_their_times(tmp_path, name):
    times = {"steady": list(range(0, 2000, 40)), "varying": [0, 10, 90, 100, 300, 420, 425, 700, 1000, 1500, 1960],
             "a gap": [0, 40, 80, 1500, 1540, 1960], "twice as fast": list(range(0, 2000, 20)),
             "late start": list(range(800, 2800, 40))}[name]
    film(tmp_path / "a.mkv", times)
    seen = levels(tmp_path / "a.mkv")
    start = times[0]
    assert abs(len(seen) - 50) <= 2
    for number, level in enumerate(seen[:48]):
        shown = max(time for time in times if time - start <= number * 40 + 2)
        assert abs(level - (10 + shown // 20)) < 3, (number, shown)


def test_damaged_frames_do_not_move_the_others(tmp_path, caplog):
    """Every frame is a key frame; those in the middle are overwritten."""
    film(tmp_path / "a.mkv", list(range(0, 2000, 40)), g="1", qp="1")
    whole = levels(tmp_path / "a.mkv")
    with av.open(str(tmp_path / "a.mkv")) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray((tmp_path / "a.mkv").read_bytes())
    for position, size in places[20:26]:
        data[position + 12 : position + size] = b"\xff" * (size - 12)
    (tmp_path / "a.mkv").write_bytes(data)
    seen = levels(tmp_path / "a.mkv")
    assert len(seen) == len(whole)
    assert np.abs(seen[:19] - whole[:19]).max() < 2 and np.abs(seen[28:] - whole[28:]).max() < 2


@pytest.mark.parametrize(("codec", "size", "form"), [
    ("libx264", (64, 48), "mov"), ("libx265", (64, 48), "mp4"), ("mpeg4", (64, 48), "avi"),
    ("ffv1", (33, 65), "matroska"),
    ("libvpx-vp9", (64, 48), "webm"), ("mpeg2video", (64, 48), "mpegts"), ("gif", (64, 48), "gif"),
    ("mpeg2video", (64, 48), "mpeg"), ("libx264", (64, 48), "flv")])
def test_codecs_and_containers(tmp_path, codec, size, form):
    try:
        if codec == "gif":
            from PIL import Image

            frames = [Image.new("RGB", size, (level,) * 3) for level in range(0, 200, 20)]
            frames[0].save(tmp_path / "a", "GIF", save_all=True, append_images=frames[1:], duration=40)
        elif codec == "mpeg2video":
            with av.open(str(tmp_path / "a"), "w", format=form) as container:
                stream = container.add_stream(codec, rate=25)
                stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
                for number in range(10):
                    frame = av.VideoFrame.from_ndarray(np.full((72, 64), 100, np.uint8), format="yuv420p")
                    frame.pts, frame.time_base = number, Fraction(1, 25)
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
        else:
            film(tmp_path / "a", list(range(0, 400, 40)), codec=codec, size=size, form=form)
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg does not write {codec}: {error}")
    found = open_video(tmp_path / "a")
    assert (found.width, found.height) == size and abs(found.count - 10) <= 1
    assert len(found.frames(64, 32).tensor()) == found.count
    assert found.audio() is None


def test_a_video_that_claims_to_last_for_years(tmp_path):
    film(tmp_path / "a.mkv", [0, 40, 10**11])
    with pytest.raises(InputError, match=r"a\.mkv: says that it lasts"):
        open_video(tmp_path / "a.mkv")


def test_a_recording_with_a_cover_is_no_video(tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "cover.jpg")
    with av.open(str(tmp_path / "cover.jpg")) as cover, av.open(str(tmp_path / "a.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=44100, layout="mono")
        picture = container.add_stream_from_template(cover.streams.video[0])
        picture.disposition = av.stream.Disposition.attached_pic.value
        packet = next(cover.demux(video=0))
        packet.stream = picture
        container.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 44100, 0, Fraction(1, 44100)
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    with pytest.raises(InputError, match="has no picture"):
        open_video(tmp_path / "a.mp4")


@pytest.mark.parametrize("kind", [enum.Flag, enum.IntFlag])
def test_a_cover_and_the_default_are_known_by_any_pyav(kind):
    """Its Disposition is a Flag before version 17.1, and an IntFlag since."""
    disposition = kind("Disposition", {"default": 0x1, "attached_pic": 0x400})
    cover, plain, default = (SimpleNamespace(codec_context=object(), disposition=value) for value in (
        disposition.attached_pic | disposition.default, disposition(0), disposition.default))
    file = SimpleNamespace(streams=SimpleNamespace(video=[cover, plain, default]))
    assert best_stream(file, "video") is default
    file.streams.video = [cover, plain]
    assert best_stream(file, "video") is plain


def test_a_pyav_that_crashes_is_not_used(tmp_path, monkeypatch):
    film(tmp_path / "a.mkv", [0, 40])
    monkeypatch.setattr(av, "__version__", "14.4.0")
    monkeypatch.setattr(av, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(InputError, match=r"a\.mkv: .*PyAV 14\.4\.0, expected 15 or newer\. Update it"):
        open_video(tmp_path / "a.mkv")


def test_options_reach_the_demuxer_alone(tmp_path, monkeypatch):
    """Options of streams crash PyAV before version 17.1 where a stream is found after the header."""
    film(tmp_path / "a.flv", [0, 40], form="flv")
    given, opened = [], av.open
    monkeypatch.setattr(av, "open", lambda *names, **options: given.append(options) or opened(*names, **options))
    open_video(tmp_path / "a.flv")
    assert given and not any(options.get("options") or options.get("stream_options") for options in given)
    assert all(options["container_options"] == {"protocol_whitelist": "none"} for options in given)


@pytest.mark.parametrize(("codec", "form"), [
    ("libx264", "mp4"), ("libx264", "matroska"), ("mpeg4", "mp4"), ("mpeg4", "avi"), ("mjpeg", "mov"),
    ("prores_ks", "mov"), ("libvpx-vp9", "mp4"), ("mpeg2video", "mpeg"), ("mpeg2video", "mpegts")])
@pytest.mark.parametrize("aspect", [Fraction(64, 45), Fraction(16, 15)])
def test_pixels_that_are_not_square(tmp_path, codec, form, aspect):
    """Of PAL, 16:9 and 4:3: a circle is one."""
    rows, columns = np.mgrid[:576, :720]
    circle = ((columns * float(aspect) - 320) ** 2 + (rows - 288) ** 2 < 200**2)[..., None].repeat(3, 2)
    try:
        with av.open(str(tmp_path / "a"), "w", format=form) as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height = 720, 576
            stream.pix_fmt = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}.get(codec, "yuv420p")
            stream.codec_context.sample_aspect_ratio = aspect
            for number in range(2):
                frame = av.VideoFrame.from_ndarray(circle.astype(np.uint8) * 200, format="rgb24")
                frame = frame.reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg does not write {codec}: {error}")
    found = open_video(tmp_path / "a")
    assert (found.width, found.height) == (round(720 * aspect), 576)
    seen = found.frames(found.width, found.height).tensor()[0, ..., 1] > 100
    assert abs(int(seen[288].sum()) - 400) <= 4 and abs(int(seen[:, 320].sum()) - 400) <= 4


def test_pixels_of_an_absurd_aspect(tmp_path):
    """More in a row than memory holds; the header of the file says so."""
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        frame = av.VideoFrame.from_ndarray(np.zeros((72, 64), np.uint8), format="yuv420p")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = (tmp_path / "a.mov").read_bytes()
    said = b"pasp" + struct.pack(">II", 2, 1)
    assert data.count(said) == 1
    (tmp_path / "a.mov").write_bytes(data.replace(said, b"pasp" + struct.pack(">II", 30000, 1)))
    with pytest.raises(InputError, match="is 1920000x48 pixels, more than can be read"):
        open_video(tmp_path / "a.mov")


def memory_of_opening(small: Path, large: Path) -> int:
    open_video(small)
    before = memory_of_process("VmHWM")
    assert open_video(large).count == 50
    return memory_of_process("VmHWM") - before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_packet_is_held(tmp_path):
    """All of them are as large as the file: 45 MB here, read in a process of its own."""
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    with av.open(str(tmp_path / "large.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "bgr0"
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(noise, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    film(tmp_path / "small.mkv", [0, 40], size=(640, 480))
    size = (tmp_path / "large.mkv").stat().st_size
    assert size > 40e6
    assert in_fresh_process(memory_of_opening, tmp_path / "small.mkv", tmp_path / "large.mkv") < size / 2


def spoken(path, form: str, codec: str = "libx264", sound: str = "aac", *, seconds: int = 12, beep: float = 1.0,
           **options: str) -> None:
    """A film of 25 frames a second, each of its own brightness, that flashes and beeps at one second."""
    with av.open(str(path), "w", format=form) as container:
        video = container.add_stream(codec, rate=25, options={"g": "24", "bf": "2", **options})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream(sound, rate=48000, layout="stereo")
        packets: list[av.Packet] = []
        for number in range(25 * seconds):
            level = 255 if number == 25 else 20 + number % 160
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            packets += video.encode(frame)
            times = np.arange(number * 1920, (number + 1) * 1920) / 48000
            # A sweep, so that each place sounds unlike the others.
            level = np.where((times < beep) | (times > beep + 0.1), 0.1, 0.6)
            wave = (level * np.sin(2 * np.pi * times * (200 + 20 * times))).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48000, number * 1920, Fraction(1, 48000)
            packets += audio.encode(frame)
        packets += video.encode(None) + audio.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)


def flash_and_beep(path) -> tuple[float, float]:
    """Seconds at which they are seen and heard."""
    found = open_video(path)
    seen = found.frames(64, 48).tensor().float().mean((1, 2, 3))
    waveform, rate = found.audio()
    return int(seen.argmax()) / 25, int((waveform[0].abs() > 0.35).nonzero()[0]) / rate


def rewritten(source, target, keep, damage=lambda number: False) -> None:
    """A copy of a film. keep(packet): whether it is in; damage(n): whether the audio's packet n becomes noise."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {stream: new.add_stream_from_template(stream) for stream in (*old.streams.video, *old.streams.audio)}
        heard = 0
        for packet in old.demux():
            if not packet.size or not keep(packet):
                continue
            stream = packet.stream
            if stream.type == "audio":
                heard += 1
                if damage(heard - 1):
                    noise = av.Packet(b"\xff" * packet.size)
                    noise.pts, noise.dts, noise.time_base = packet.pts, packet.dts, packet.time_base
                    noise.duration, packet = packet.duration, noise
            packet.stream = streams[stream]
            new.mux(packet)


@pytest.mark.parametrize("name", ["a.ts", "a.mkv"])
def test_a_film_that_was_cut_before_leading_frames_keeps_its_sound_in_step(tmp_path, name):
    """As recorders of broadcasts cut: at a key frame, after which frames come that are shown before it."""
    spoken(tmp_path / "whole.ts", "mpegts", "mpeg2video", "mp2", seconds=3)
    keys: list[Fraction] = []

    def keep(packet) -> bool:
        time = packet.pts * packet.time_base
        if packet.stream.type == "video" and packet.is_keyframe and time > 0.4:
            keys.append(time)
        return len(keys) > 0

    rewritten(tmp_path / "whole.ts", tmp_path / name, keep)
    flash, beep = flash_and_beep(tmp_path / name)
    assert 0.3 < flash < 0.7 and abs(flash - beep) < 0.02


def test_sound_whose_beginning_is_damaged_keeps_its_time(tmp_path, caplog):
    spoken(tmp_path / "whole.mkv", "matroska", sound="libmp3lame", seconds=3)
    rewritten(tmp_path / "whole.mkv", tmp_path / "a.mkv", lambda packet: True, lambda number: number < 20)
    flash, beep = flash_and_beep(tmp_path / "a.mkv")
    assert flash == 1 and abs(beep - 1) < 0.02
    waveform, rate = load_audio(tmp_path / "a.mkv")
    assert abs(int((waveform[0].abs() > 0.35).nonzero()[0]) / rate - 1) < 0.02
    assert caplog.text.count("0.5 s of its sound are missing") == 2


def test_an_audio_track_without_a_packet_is_no_sound(tmp_path):
    spoken(tmp_path / "whole.mkv", "matroska", seconds=1)
    rewritten(tmp_path / "whole.mkv", tmp_path / "a.mkv", lambda packet: packet.stream.type == "video")
    with av.open(str(tmp_path / "a.mkv")) as file:
        assert len(file.streams.audio) == 1
    found = open_video(tmp_path / "a.mkv")
    assert found.audio() is None and found.count == 25
    with pytest.raises(InputError, match="holds no sound at all"):
        load_audio(tmp_path / "a.mkv")


@pytest.mark.parametrize(("form", "codec", "sound"), [
    ("mp4", "libx264", "aac"), ("matroska", "libx264", "aac"), ("webm", "libvpx-vp9", "libopus"),
    ("mpegts", "libx264", "aac"), ("mpegts", "mpeg2video", "mp2"), ("mpeg", "mpeg2video", "mp2"),
    ("avi", "mpeg4", "libmp3lame"), ("flv", "libx264", "aac"), ("mov", "mpeg4", "aac")])
def test_a_part_is_that_of_the_whole_and_what_is_before_is_not_decoded(tmp_path, monkeypatch, form, codec, sound):
    try:
        spoken(tmp_path / "a", form, codec, sound)
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg does not write {codec}: {error}")
    film = open_video(tmp_path / "a")
    whole, (heard, rate) = film.frames(64, 48).tensor(), film.audio()
    frames_of, decoded = container._frames, []

    def counted(*given):
        for frame in frames_of(*given):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(container, "_frames", counted)
    for start, end in ((3, 9), (100, 110), (163, 170), (250, 280), (film.count - 10, film.count)):
        decoded.clear()
        assert torch.equal(film.frames(64, 48, start, end).tensor(), whole[start:end])
        assert len(decoded) <= end - start + 75 or form == "mpeg"  # whose times are guesses after a seek
        decoded.clear()
        part, _ = film.audio(start, end)
        assert sum(frame.samples for frame in decoded) / rate <= (end - start) / 25 + 3.5 or form == "mpeg"
        assert part.shape == (2, round((end - start) * rate / 25))
        same = heard[0, round(start * rate / 25) :][480 : part.shape[1] - 480]
        # To a millisecond, in which Matroska tells the times of its packets.
        assert min(float((part[0, 480 + late :][: len(same)] - same).abs().max()) for late in range(-48, 49)) < 0.005


def test_a_part_of_a_film_that_is_too_long(tmp_path, monkeypatch):
    spoken(tmp_path / "a.mp4", "mp4", seconds=5)
    monkeypatch.setattr(audio_file, "MAX_RECORDING", 3)
    film = open_video(tmp_path / "a.mp4")
    assert film.audio(50, 100)[0].shape[1] == 96000
    with pytest.raises(InputError, match="Trim Video"):
        film.audio()


@pytest.mark.parametrize(("matrix", "wanted"), [
    ((1, 0, 0, 1), "RG/BW"), ((0, 1, -1, 0), "BR/WG"), ((-1, 0, 0, -1), "WB/GR"), ((0, -1, 1, 0), "GW/RB"),
    ((-1, 0, 0, 1), "GR/WB"), ((1, 0, 0, -1), "BW/RG"), ((0, 1, 1, 0), "RB/GW"), ((0, -1, -1, 0), "WG/BR")])
@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(3, 2)])
def test_a_film_is_turned_and_mirrored_as_its_header_says(tmp_path, matrix, wanted, aspect):
    """A picture of red, green, blue and white corners. The matrix in a track's header: a, b; c, d."""
    corners = np.zeros((64, 128, 3), np.uint8)
    for (row, column), color in zip(np.ndindex(2, 2), ((250, 0, 0), (0, 250, 0), (0, 0, 250), (250,) * 3), strict=True):
        corners[32 * row : 32 * row + 32, 64 * column : 64 * column + 64] = color
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv444p"
        stream.codec_context.sample_aspect_ratio = aspect
        frame = av.VideoFrame.from_ndarray(corners, format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = (tmp_path / "a.mp4").read_bytes()
    place = data.index(b"tkhd") + 4 + 4 + 20 + 16  # of version 0
    a, b, c, d = (number * 0x10000 for number in matrix)
    header = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    (tmp_path / "a.mp4").write_bytes(data[:place] + header + data[place + 36 :])
    film = open_video(tmp_path / "a.mp4")
    size = (128 * aspect, 64)
    assert (film.width, film.height) == (size if matrix[0] else size[::-1])
    seen = film.frames(film.width, film.height).tensor()[0].numpy() > 128
    names = {(True, False, False): "R", (False, True, False): "G", (False, False, True): "B", (True,) * 3: "W"}
    rows = ["".join(names[tuple(seen[film.height * row // 4, film.width * column // 4].tolist())] for column in (1, 3))
            for row in (1, 3)]
    assert "/".join(rows) == wanted


@pytest.mark.parametrize(("size", "matrix", "full", "tagged", "form"), [
    ((1280, 720), "ITU709", False, False, "yuv420p"), ((720, 1280), "ITU709", False, False, "yuv420p"),
    ((1920, 1080), "ITU709", False, False, "yuv420p10le"), ((1280, 544), "ITU709", False, False, "yuv420p"),
    ((720, 576), "ITU601", False, False, "yuv420p"), ((64, 48), "ITU601", False, False, "yuv444p"),
    ((1280, 720), "ITU601", False, True, "yuv420p"), ((64, 48), "ITU709", False, True, "yuv420p"),
    ((64, 48), "ITU709", True, True, "yuv420p"), ((1280, 720), "ITU709", True, True, "yuv444p"),
    ((1280, 720), "ITU601", True, True, "yuvj420p")])
def test_colors_are_those_of_the_tags_and_without_them_those_of_the_size(tmp_path, size, matrix, full, tagged, form):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = *size, form
        if tagged:
            stream.codec_context.colorspace = {"ITU709": 1, "ITU601": 6}[matrix]
            stream.codec_context.color_range = 2 if full else 1
        color = np.full((size[1], size[0], 3), (200, 60, 40), np.uint8)
        frame = av.VideoFrame.from_ndarray(color, format="rgb24").reformat(
            format=form, src_color_range=2, dst_colorspace=matrix, dst_color_range=2 if full else 1)
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    film = open_video(tmp_path / "a.mkv")
    seen = film.frames(32, 32).tensor()[0, 16, 16].tolist()
    assert seen == pytest.approx([200, 60, 40], abs=4)


@pytest.mark.parametrize("interlaced", [True, False])
def test_interlaced_video_is_said(tmp_path, caplog, interlaced):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        options = {"flags": "+ildct+ilme", "x264-params": "tff=1"} if interlaced else {}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((96, 64), 90, np.uint8), format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    open_video(tmp_path / "a.mkv")
    assert ("a.mkv: is interlaced" in caplog.text) == interlaced
