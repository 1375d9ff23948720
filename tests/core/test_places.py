"""Where files are written: nothing that is read, or that nobody asked to replace, is written over."""

import os
import signal
import stat
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from magihuman_core.atomic import check_place, temporary_name, whole_file
from magihuman_core.cli import main
from magihuman_core.errors import InputError
from magihuman_core.tools.convert import convert

from .golden import names

PROMPT = "A happy woman says calmly: ma so mi"


def photograph(path):
    Image.new("RGB", (64, 64), (9, 8, 7)).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("spelling", ["me.png", "./me.png", "hard.png", "soft.png", "sub/../me.png"])
def test_the_demo_keeps_the_photograph_it_is_given(tmp_path, monkeypatch, capsys, spelling):
    monkeypatch.chdir(tmp_path)
    before = photograph(tmp_path / "me.png")
    (tmp_path / "sub").mkdir()
    (tmp_path / "hard.png").hardlink_to(tmp_path / "me.png")
    (tmp_path / "soft.png").symlink_to("me.png")
    code = main(["demo", "--image", spelling, "--out", "me.mp4"])
    assert code == 2 and "is the source itself" in capsys.readouterr().err
    assert (tmp_path / "me.png").read_bytes() == before and not (tmp_path / "me.mp4").exists()


def test_the_demo_replaces_no_image_but_a_contact_sheet(tmp_path, capsys, monkeypatch):
    from magihuman_core.cli import demo

    before = photograph(tmp_path / "me.png")
    assert main(["demo", "--out", str(tmp_path / "me.mp4")]) == 2
    assert "is no contact sheet" in capsys.readouterr().err
    assert (tmp_path / "me.png").read_bytes() == before
    frames = torch.zeros(20, 32, 32, 3, dtype=torch.uint8)
    demo.save_sheet(frames, tmp_path / "sheet.png")
    demo.check_sheet(tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (192, 64)


def test_a_folder_in_the_contact_sheets_place_is_said_before_any_work(tmp_path, capsys):
    (tmp_path / "a.png").mkdir()
    start = time.monotonic()
    assert main(["demo", "--out", str(tmp_path / "a.mp4")]) == 2
    assert "is a folder" in capsys.readouterr().err and time.monotonic() - start < 2


@pytest.fixture
def sharded(tmp_path):
    """An audio VAE in two shards of a folder, with an index outside of it."""
    import json

    from magihuman_core.loading.folder import DEMO

    tensors = load_file(next((DEMO / "audio_vae").glob("*.safetensors")))
    keys = sorted(tensors)
    (tmp_path / "sub").mkdir()
    parts = {"sub/s1.safetensors": keys[:5], "sub/s2.safetensors": keys[5:]}
    for name, part in parts.items():
        save_file({key: tensors[key] for key in part}, tmp_path / name)
    index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


@pytest.mark.parametrize("target", ["sub/s1.safetensors", "sub/../sub/s2.safetensors", "link.safetensors",
                                    "hard.safetensors"])
@pytest.mark.parametrize("source", ["model.safetensors.index.json", "."])
def test_convert_writes_over_no_shard(sharded, source, target):
    (sharded / "link.safetensors").symlink_to("sub/s1.safetensors")
    (sharded / "hard.safetensors").hardlink_to(sharded / "sub" / "s2.safetensors")
    before = {path: path.read_bytes() for path in (sharded / "sub").iterdir()}
    with pytest.raises(InputError, match="is the source itself"):
        convert(sharded / source if source != "." else sharded / "model.safetensors.index.json", sharded / target)
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_name_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("a" * 251 + ".mp4")
    check_place(path, "clip")
    with whole_file(path) as file:
        file.write(b"clip")
    assert path.read_bytes() == b"clip"
    with pytest.raises(InputError, match="cannot be written"):
        check_place(tmp_path / ("a" * 300 + ".mp4"), "clip")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_a_replaced_file_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    path.chmod(mode)
    with whole_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == mode


def test_of_a_link_the_file_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "a.mp4").symlink_to("disk/b.mp4")
    for text in (b"one", b"two"):
        check_place(tmp_path / "a.mp4", "clip")
        with whole_file(tmp_path / "a.mp4") as file:
            file.write(text)
        assert (tmp_path / "disk" / "b.mp4").read_bytes() == text and (tmp_path / "a.mp4").is_symlink()


def test_what_is_no_place_for_a_file(tmp_path):
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "file").touch()
    for name, words in (("loop.mp4", "cannot be written"), ("pipe.mp4", "a pipe"), ("a\0.mp4", "possible name"),
                        ("file/a.mp4", "cannot be written"), (".", "folder")):
        with pytest.raises(InputError, match=words):
            check_place(tmp_path / name, "clip")
    assert names(tmp_path) == ["file", "loop.mp4", "pipe.mp4"]


def test_a_write_protected_file_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").touch(0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # of which root sees nothing
    with pytest.raises(InputError, match="protected"):
        check_place(tmp_path / "a.mp4", "clip")


WRITER = """
import sys, time
from pathlib import Path
from magihuman_core.atomic import whole_file
with whole_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_and_a_living_one_keeps_its_own(tmp_path):
    def start(name: str) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / name)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"writing\n"
        return process

    killed, living = start("a.mp4"), start("b.mp4")
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        other = tmp_path / ".magihuman-00000000-12345678.part"  # of another machine
        other.touch()
        assert len(names(tmp_path)) == 3
        check_place(tmp_path / "a.mp4", "clip")
        rest = [path for path in tmp_path.iterdir() if path != other]
        assert len(rest) == 1 and rest[0].read_bytes() == b"half"
    finally:
        living.kill()
        living.wait()


def test_temporary_names_are_short_and_differ(tmp_path):
    found = {temporary_name(tmp_path / ("x" * 250)).name for _ in range(20)}
    assert len(found) == 20 and all(len(name) < 40 for name in found)
