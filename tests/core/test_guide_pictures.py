"""The pictures of the guides: every guide shows one, and they can be drawn again."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from training.draw_guides import GUIDES

DOCS = Path(__file__).resolve().parents[2] / "docs" / "guides"


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_shows_its_picture(name):
    assert f"]({name}.jpg)" in (DOCS / f"{name}.md").read_text(encoding="utf-8")
    with Image.open(DOCS / f"{name}.jpg") as picture:
        assert picture.width == 900


def test_a_picture_is_drawn_again_and_an_unknown_guide_is_refused(tmp_path):
    command = [sys.executable, "-m", "training.draw_guides", "--threads", "1", "--out", str(tmp_path)]
    done = subprocess.run([*command, "voice-draft", "keyframes"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("voice-draft", "keyframes"):
        with Image.open(tmp_path / f"{name}.jpg") as picture:
            assert picture.width == 900
    done = subprocess.run([*command, "haircut"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "haircut: expected some of long-speech, dub" in done.stderr
