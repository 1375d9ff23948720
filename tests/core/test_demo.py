"""The built-in model, from the command line, as a newcomer meets it."""

import av
import pytest
from PIL import Image

from magihuman_core.cli import main


@pytest.mark.parametrize("upscale", [True, False])
def test_demo(tmp_path, capsys, upscale):
    out = tmp_path / "demo.mp4"
    assert main(["demo", "--out", str(out), "--seed", "1", *([] if upscale else ["--no-upscale"])]) == 0
    assert "with sound" in capsys.readouterr().out
    size = 256 if upscale else 128
    with av.open(str(out)) as film:
        video, audio = film.streams.video[0], film.streams.audio[0]
        assert (video.width, video.height, video.frames) == (size, size, 49)
        assert float(audio.duration * audio.time_base) == pytest.approx(49 / 25, abs=0.03)
    with Image.open(out.with_suffix(".png")) as sheet:
        assert sheet.size == (6 * size, 2 * size)
