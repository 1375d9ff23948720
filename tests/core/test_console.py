"""What a command says, and its exit code, on consoles of any encoding."""

import errno
import io
import os
import subprocess
import sys

import pytest

from magihuman_core.cli.console import Exit, exit_code, plain
from magihuman_core.cli.program import main
from magihuman_core.errors import CheckpointError, InputError

from .golden import ROOT

NAME = "caf\u00e9 \u65e5\u672c \U0001f600"


def caused(error: Exception, cause: BaseException) -> Exception:
    try:
        try:
            raise cause
        except BaseException:
            raise error from None
    except Exception as raised:
        return raised


@pytest.mark.parametrize(("error", "code"), [
    (InputError("a"), Exit.INPUT), (CheckpointError("a"), Exit.WEIGHTS), (MemoryError(), Exit.MACHINE),
    (RuntimeError("CUDA out of memory"), Exit.MACHINE), (OSError(errno.ENOSPC, "no space"), Exit.MACHINE),
    (caused(InputError("a"), OSError(errno.ENOSPC, "no space")), Exit.MACHINE),
    (caused(CheckpointError("a"), OSError(errno.EDQUOT, "quota")), Exit.MACHINE),
    (caused(InputError("a"), OSError(errno.ENOENT, "no such file")), Exit.INPUT),
    (OSError(errno.EACCES, "denied"), Exit.INPUT), (KeyError("x"), Exit.INTERNAL), (ValueError("x"), Exit.INTERNAL)])
def test_exit_codes_tell_the_kind(error, code):
    assert exit_code(error) == code


@pytest.fixture(params=[NAME, "lone \udce9 surrogate"])
def named(request, tmp_path):
    path = tmp_path / f"{request.param}.txt"
    try:
        path.write_text("hello")
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    return path


@pytest.mark.parametrize("encoding", ["cp1252", "cp949", "cp936", "ascii", "utf-8"])
def test_a_console_that_cannot_print_a_name(named, encoding, monkeypatch):
    def run(stream: str, path) -> tuple[int, bytes]:
        console = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
        with monkeypatch.context() as patch:
            patch.setattr(sys, stream, console)
            code = main(["inspect", str(path)])
        console.flush()
        return code, console.buffer.getvalue()

    code, said = run("stdout", named)
    assert code == 0 and b"not a weight file" in said
    # Errors, too.
    code, said = run("stderr", named.with_suffix(".missing"))
    assert code == Exit.WEIGHTS and b"no such file or folder" in said and b"Traceback" not in said


def test_a_process_whose_console_cannot_print_a_name(named):
    """From the words that a process is started with to the code that it ends with."""
    path, code, words = (named, 0, b"not a weight file")
    if "surrogate" in named.name:
        path, code, words = named.with_suffix(".missing"), Exit.WEIGHTS, b"no such file or folder"
    done = subprocess.run([sys.executable, "-m", "magihuman_core", "inspect", str(path)], capture_output=True, cwd=ROOT,
                          env={**os.environ, "PYTHONIOENCODING": "ascii:strict"}, timeout=100, check=False)
    assert done.returncode == code, done.stderr
    assert words in (done.stderr if code else done.stdout) and b"Traceback" not in done.stderr


def test_a_name_gives_a_console_no_orders(tmp_path, capsys):
    path = tmp_path / "\x1b[31mred\x07 \u202egpj.exe"
    path.write_text("hello")
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "\\x1b[31mred\\x07 \\u202egpj.exe" in said and "\x1b" not in said and "\u202e" not in said
    assert plain(f"{NAME}\tx\n") == f"{NAME}\tx\n"


def test_a_fault_of_the_program_says_what_to_send(monkeypatch, capsys):
    import magihuman_core.tools.inspect as tool

    monkeypatch.setattr(tool, "describe", lambda *_, **__: {}["no such key"])
    assert main(["inspect", "x"]) == Exit.INTERNAL
    said = capsys.readouterr().err
    last = said.splitlines()[-1]
    assert "Traceback" in said and "internal error: KeyError" in last
    assert all(word in last for word in ("report", "magihuman 0", "Python 3", "torch 2"))


PROMPT = ["generate", "--models", "demo", "--prompt", "A woman says: ma", "--seconds", "0.2", "--steps", "1",
          "--width", "32", "--height", "32"]


@pytest.mark.parametrize("gone", [1, 2])
@pytest.mark.parametrize("how", ["a reader that has seen enough", "closed from the beginning"])
def test_a_clip_is_made_though_nobody_reads_what_is_said(tmp_path, gone, how):
    out = tmp_path / "clip.mp4"

    def close():
        if how.startswith("closed"):
            os.close(gone)
        else:
            reader, writer = os.pipe()
            os.dup2(writer, gone)
            os.close(writer)
            os.close(reader)

    command = [sys.executable, "-m", "magihuman_core", *PROMPT, "-v", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, preexec_fn=close, capture_output=True, check=False)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert out.is_file()
