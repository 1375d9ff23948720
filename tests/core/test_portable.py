"""What Windows and macOS do otherwise, as far as another system can tell."""

import ast
import multiprocessing
import os
import signal
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
import torch
from safetensors.torch import load_file, save_file

from magihuman_core import atomic
from magihuman_core.atomic import check_not_input, check_place, whole_file
from magihuman_core.cli import program
from magihuman_core.cli.program import main
from magihuman_core.errors import InputError
from magihuman_core.tools.inspect import describe

from .golden import ROOT, names, outputs, small_model

PRODUCT = [path for top in ("magihuman_core", "nodes") for path in sorted((ROOT / top).rglob("*.py"))]
POSIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"}
POSIX_NAMES = {"fork", "forkpty", "getuid", "geteuid", "getgid", "setsid", "killpg", "sync", "mkfifo", "mknod", "uname",
               "wait4", "waitpid", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGQUIT", "alarm", "setitimer", "pause",
               "sched_getaffinity", "posix_fadvise", "statvfs", "O_DIRECT", "O_NONBLOCK"}
TEXT_CALLS = {"read_text", "write_text", "open"}
# What other systems do not have, and is not missed there.
LINUX = {"magihuman_core/runtime/main_memory.py": ["/proc/self/cgroup", "/sys/fs/cgroup"]}


def posix_only(source: str) -> list[str]:
    """What of a module is not on Windows, and text files whose encoding depends on the system."""
    tree, found = ast.parse(source), []
    tried = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in node.body
             if any(getattr(handler.type, "id", "") == "ImportError" for handler in node.handlers)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in tried:
            found += [alias.name for alias in node.names if alias.name in POSIX_MODULES]
        if isinstance(node, ast.Attribute) and node.attr in POSIX_NAMES and getattr(node.value, "id", "") in (
                "os", "signal"):
            found.append(node.attr)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(
                ("/proc", "/dev/", "/tmp/", "/sys/")):  # noqa: S108  what is looked for
            found.append(node.value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in TEXT_CALLS:
            modes = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            binary = node.func.attr == "open" and any("b" in str(mode) for mode in modes)
            ours = getattr(node.func.value, "id", getattr(node.func.value, "attr", "")) in (
                "av", "Image", "os", "parts")  # other things that are opened
            if not (binary or ours or any(word.arg == "encoding" for word in node.keywords)):
                found.append(f"{node.func.attr} without an encoding, line {node.lineno}")
    return found


@pytest.mark.parametrize(("source", "count"), [
    ("import fcntl", 1), ("try:\n import fcntl\nexcept ImportError:\n fcntl = None", 0), ("os.fork()", 1),
    ("signal.signal(signal.SIGHUP, f)", 1), ("p = '/proc/self'", 1), ("path.read_text()", 1),
    ("path.read_text(encoding='utf-8')", 0), ("path.open('rb')", 0), ("path.open()", 1), ("av.open(x)", 0)])
def test_the_search_finds(source, count):
    assert len(posix_only(source)) == count


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_of_posix_alone(path):
    assert posix_only(path.read_text(encoding="utf-8")) == LINUX.get(path.relative_to(ROOT).as_posix(), [])


@pytest.mark.parametrize("name", [
    "con.mp4", "CON .mp4", "aux.tar.mp4", "nul.mp4", "com1.mp4", "LPT9.mp4", "com\u00b9.mp4", "prn/clip.mp4", "a:b.mp4",
    "what?.mp4", "a*.mp4", "folder./clip.mp4", "folder /clip.mp4", "<a>.mp4", 'a"b.mp4', "a|b.mp4"])
def test_names_that_mean_something_else_on_windows(name, tmp_path, monkeypatch):
    check_place(tmp_path / name, "clip")  # fine here
    monkeypatch.setattr(atomic, "WINDOWS", True)
    with pytest.raises(InputError, match="is no name on Windows"):
        check_place(tmp_path / "new" / name, "clip")
    assert not (tmp_path / "new").exists(), "nothing was made for it"


@pytest.mark.parametrize("path", [
    r"C:\Users\a b\clip.mp4", r"\\server\share\clip.mp4", r"..\clip.mp4", r".\clip.mp4", "C:/console.mp4",
    r"C:\clips\com10.mp4", r"C:\a.b\c..d.mp4", "auxiliary.mp4", "nul2.mp4"])
def test_names_that_are_right_on_windows(path):
    atomic._check_windows_name(PureWindowsPath(path))


def test_backslashes_are_part_of_a_name_elsewhere():
    atomic._check_windows_name(PurePosixPath("/a\\b.mp4"))


def in_use(monkeypatch, *used: Path) -> None:
    """As on Windows: files that another program has open are neither replaced nor removed."""
    def guarded(method):
        def call(self, *arguments):
            for path in (self, *arguments):
                if isinstance(path, Path) and path in used:
                    raise PermissionError(13, "Access is denied", str(path))
            return method(self, *arguments)

        return call

    monkeypatch.setattr(Path, "replace", guarded(Path.replace))
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False, unlink=Path.unlink:
                        guarded(lambda path: unlink(path, missing_ok))(self))


def test_a_clip_that_a_player_holds_open_costs_no_work(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    (tmp_path / "clip_1.mp4").write_bytes(b"another")
    in_use(monkeypatch, path)
    with pytest.raises(InputError, match=r"in use by another program.*kept as clip_2\.mp4"), whole_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old" and (tmp_path / "clip_2.mp4").read_bytes() == b"new"
    assert names(tmp_path) == ["clip.mp4", "clip_1.mp4", "clip_2.mp4"]


def test_what_was_not_finished_is_not_kept(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    in_use(monkeypatch, path)
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["clip.mp4"] and path.read_bytes() == b"old"


def test_a_left_over_that_is_in_use_stays_and_harms_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "fcntl", None)  # Windows
    held, left, ready = (atomic.temporary_name(tmp_path / "a.mp4") for _ in range(3))
    for file in (held, left, ready):
        file.touch()
    for file in (held, left):  # the third was closed just now, and waits for its name
        os.utime(file, (0, 0))
    in_use(monkeypatch, held)
    atomic.remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([held.name, ready.name])


def test_a_path_as_long_as_the_system_takes_is_said_at_once(tmp_path, monkeypatch):
    """A limit on whole paths, as Windows has one, is met by the name itself, not by the temporary one alone."""
    limit, touch = len(str(tmp_path)) + 60, Path.touch

    def limited(self, *arguments, **options):
        if len(str(self)) > limit:
            raise FileNotFoundError(2, "The system cannot find the path specified", str(self))
        touch(self, *arguments, **options)

    monkeypatch.setattr(Path, "touch", limited)
    check_place(tmp_path / f"{'a' * 50}.mp4", "clip")
    with pytest.raises(InputError, match="cannot be written"):
        check_place(tmp_path / f"{'a' * 80}.mp4", "clip")
    assert not names(tmp_path)


def test_names_that_differ_in_case_only(tmp_path, monkeypatch):
    """Where the system takes them for one file, so does the check that no input is written over."""
    path = tmp_path / "Clip.mp4"
    path.write_bytes(b"x")
    monkeypatch.setattr(Path, "samefile", lambda self, other: str(self).lower() == str(other).lower())
    with pytest.raises(InputError, match="is the source itself"):
        check_not_input(tmp_path / "clip.MP4", [path])


def test_a_system_without_hangups(monkeypatch):
    instead = signal.SIGUSR1  # any other one that nobody has changed
    monkeypatch.delattr(signal, "SIGHUP", raising=False)
    monkeypatch.setattr(signal, "SIGBREAK", instead, raising=False)  # Windows has this one
    before, seen = [signal.getsignal(number) for number in (signal.SIGTERM, instead)], []
    monkeypatch.setattr(program, "_run", lambda arguments: seen.append(signal.getsignal(instead)) or 0)
    assert main(["inspect", "demo"]) == 0
    assert seen[0] is not before[1], "the window's end is heard"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, instead)] == before


def test_a_model_in_a_process_made_by_spawn(tmp_path):
    """As Windows and macOS make them: nothing is inherited, everything is imported anew."""
    path = tmp_path / "base.safetensors"
    save_file(small_model("network"), path, metadata={"role": "base"})
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert "a MagiHuman network (base" in pool.apply(describe, (path,))


def test_files_are_read_where_nothing_can_be_mapped(tmp_path, monkeypatch):
    """Network drives of Windows refuse maps; files that are not mapped can be replaced there as well."""
    from magihuman_core import load_dit
    from magihuman_core.checkpoint import tensor_file

    def refuse(*arguments, **options):
        raise AssertionError("mapped")

    monkeypatch.setattr(tensor_file, "mmap", refuse)
    path = tmp_path / "base.safetensors"
    save_file(small_model("network"), path, metadata={"role": "base"})
    found = outputs(load_dit(path))
    assert torch.equal(found, outputs(load_dit(load_file(path) | {}))) and torch.isfinite(found).all()
    os.replace(path, tmp_path / "moved.safetensors")  # noqa: PTH105  nothing holds it
