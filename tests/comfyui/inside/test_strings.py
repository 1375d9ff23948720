"""A workflow comes from anywhere: what the texts in it can reach, seen by Python's own audit of what is opened."""

import os
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import folder_paths
import pytest
from comfy_api.latest import io
from magihuman_pack.magihuman_core.errors import CheckpointError, InputError
from magihuman_pack.nodes import (
    check,
    clips,
    conditioning,
    decode,
    edit,
    extend,
    latents,
    loaders,
    sampling,
    voice,
    windows,
)
from test_values import given

NODES = [node for module in (check, clips, conditioning, decode, edit, extend, latents, loaders, sampling, voice,
                             windows) for node in module.NODES]
HOSTILE = [
    "../../../../etc/passwd", "/etc/passwd", "..\\..\\windows\\win.ini", "C:\\windows\\win.ini", "\\\\host\\share\\x",
    "file:///etc/passwd", "http://127.0.0.1:9/x", "//127.0.0.1:9/x", "concat:/etc/passwd|/etc/hosts", "data:,x",
    "~/.ssh/id_rsa", "$HOME/x", "%TEMP%\\x", "$(touch /tmp/x)", "`touch /tmp/x`", "; touch /tmp/x", "| touch /tmp/x",
    "{0.__class__.__init__.__globals__}", "%s%s%n", "${7*7}", "__import__('os').system('x')", "(a+)+$" + "a" * 3000,
    "<script>x</script>", "a\x00b", "embedding:../../../../etc/passwd", "embedding:x (a:1.5) [b|c] {d|e}",
    "magihuman/../../../../etc/passwd", "./magihuman/base/", ".", "/", "base/../base/", "con", "nul.safetensors",
]
# Audit events that a text must never lead to, however it is answered.
NEVER = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile", "urllib.",
         "pickle.", "http.", "ftplib.", "smtplib.", "webbrowser.", "os.remove", "os.rename", "os.rmdir", "os.mkdir",
         "os.link", "os.symlink", "os.truncate", "shutil.", "os.chmod", "os.putenv", "compile")
events: list[tuple[str, tuple]] | None = None


def note(event: str, arguments: tuple) -> None:
    if events is not None and (event == "open" or event.startswith(NEVER)):
        events.append((event, arguments))


sys.addaudithook(note)  # for as long as this process lives; it notes only within `audited`


@contextmanager
def audited(*roots: Path):
    """Nothing but reading below these folders, and Python's own modules."""
    global events
    events = found = []
    try:
        yield
    finally:
        events = None
    allowed = (*(f"{Path(root).resolve()}{os.sep}" for root in roots), "/proc/", "/sys/")
    for event, arguments in found:
        assert event == "open", (event, arguments)
        path, _, flags = arguments
        if isinstance(path, int):
            continue
        name = os.path.realpath(os.fsdecode(path))
        assert not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT), f"written: {name}"
        assert name.endswith((".py", ".pyc", ".so")) or name.startswith(allowed), f"read: {name}"


def texts_of(node) -> list[str]:
    return [known.id for known in node.define_schema().inputs if isinstance(known, io.String.Input | io.Combo.Input)]


def test_the_audit_sees(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(AssertionError, match="read"), audited(tmp_path / "other"):
        (tmp_path / "a").read_text()
    with pytest.raises(AssertionError, match="written"), audited(tmp_path):
        (tmp_path / "b").write_text("x")
    with pytest.raises(AssertionError, match=r"os\.remove"), audited(tmp_path):
        (tmp_path / "b").unlink()
    with audited(tmp_path):
        (tmp_path / "a").read_text()


@pytest.mark.parametrize("node", [node for node in NODES if texts_of(node)], ids=lambda node: node.__name__)
def test_no_text_of_a_node_reaches_beyond_comfyuis_model_folders(node, models, monkeypatch):
    folder = str(models / "text_encoders")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "text_encoders", ([folder], {".safetensors"}))
    choices = {known.id for known in node.define_schema().inputs if isinstance(known, io.Combo.Input)}
    usual = given(node)
    if node is loaders.MagiHumanTextEncoderLoader:  # the demo has a tokenizer of its own, whatever is chosen
        usual["text_encoder"] = next(name for name in loaders.choices("text_encoders") if name != loaders.DEMO)
    for name in texts_of(node):
        for value in HOSTILE:
            started = time.process_time()
            with audited(models):
                if name in choices:
                    with pytest.raises((InputError, CheckpointError)):
                        node.execute(**{**usual, name: value})
                else:
                    with suppress(InputError):  # in words, such as of a zero byte, or of a CLIP of another model
                        node.execute(**{**usual, name: value})
            assert time.process_time() - started < 2


@pytest.mark.parametrize("value", HOSTILE)
def test_a_prompt_is_tokens_and_nothing_else(value, demo_clip, models):
    """With a CLIP: core's own embedding: syntax included, by which other text encoders open files."""
    with audited(models):
        made = conditioning.MagiHumanTextEncode.execute(demo_clip, f"A woman says {value}", "").args[0]
    assert made[0][0].isfinite().all()


@pytest.fixture(scope="module")
def demo_clip():
    loader = loaders.MagiHumanTextEncoderLoader
    return loader.execute(**given(loader)).args[0]
