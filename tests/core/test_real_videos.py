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

from magihuman_core.errors import InputError
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
    container = SimpleNamespace(streams=SimpleNamespace(video=[cover, plain, default]))
    assert best_stream(container, "video") is default
    container.streams.video = [cover, plain]
    assert best_stream(container, "video") is plain


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
    assert data.count(said := b"pasp" + struct.pack(">II", 2, 1)) == 1
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
