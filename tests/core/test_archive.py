"""The archive that a registry publishes: every tracked file but those of .comfyignore.

Registries scan it and refuse or flag what starts programs, reaches the network, or runs text as code.
"""

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {
    "subprocess", "socket", "ssl", "urllib", "http", "ftplib", "smtplib", "telnetlib", "requests", "httpx", "aiohttp",
    "urllib3", "websocket", "websockets", "paramiko", "huggingface_hub", "pip", "ctypes", "marshal", "code", "codeop",
    "pickle", "shelve", "dill", "pty", "multiprocessing", "runpy", "webbrowser", "xmlrpc", "asyncio.subprocess",
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
OS_CALLS = {"system", "popen", "startfile", "fork", "kill", "putenv"}
WORDS = re.compile(r"subprocess|\bos\.(system|popen|exec\w*|spawn\w*)|\brequests\.|\burllib|\bcurl\b|\bwget\b"
                   r"|b64decode|https?://(?!git-lfs)")  # that one is how a pointer in place of a file begins
ALLOWED_SUFFIXES = {".py", ".js", ".json", ".md", ".jpg", ".png", ".toml", ".safetensors", ".txt", ""}
LARGEST = 64 * 2**20


def git(*arguments: str) -> list[str]:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True,  # noqa: S607
                              check=False)
    except FileNotFoundError:
        pytest.skip("git is not installed, and the archive is made from what git tracks")
    if done.returncode:
        pytest.skip("not a git checkout, and the archive is made from what git tracks")
    return done.stdout.splitlines()


def archive() -> list[str]:
    tracked = git("ls-files", "--cached")
    left_out = set(git("ls-files", "--cached", "--ignored", "--exclude-from", str(ROOT / ".comfyignore")))
    return [name for name in tracked if name not in left_out and (ROOT / name).exists()]


def findings(text: str) -> list[str]:
    """What a registry's scan would flag in a Python source."""
    found = [f"word {match[0]!r}" for match in WORDS.finditer(text)]
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        found += [f"import {name}" for name in names if name.split(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in CALLS:
                found.append(f"call {function.id}")
            if isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "os" and (
                    function.attr in OS_CALLS or function.attr.startswith(("exec", "spawn"))):
                found.append(f"call os.{function.attr}")
    return found


def test_the_archive_holds_what_comfyui_needs_and_nothing_of_the_workshop():
    names = archive()
    for needed in ("__init__.py", "pyproject.toml", "LICENSE", "README.md", "nodes/loaders.py",
                   "magihuman_core/model/dit.py", "example_workflows/demo.json", "locales/en/nodeDefs.json",
                   "web/docs/MagiHumanSampler.md"):
        assert needed in names, needed
    for name in names:
        parts = Path(name).parts
        assert not set(parts) & {"tests", "test", "training", "benchmarks", ".ci", ".github"}, name
        assert not Path(name).name.startswith(("test_", "conftest")), name
        assert not name.startswith("docs/"), name
        assert Path(name).suffix in ALLOWED_SUFFIXES, name
    assert sum((ROOT / name).stat().st_size for name in names) < LARGEST


def test_nothing_in_it_is_what_registries_flag():
    found = {name: findings((ROOT / name).read_text(encoding="utf-8")) for name in archive() if name.endswith(".py")}
    assert len(found) > 30
    assert {name: list_ for name, list_ in found.items() if list_} == {}


@pytest.mark.parametrize("bad", [
    "import subprocess", "from urllib import request", "import urllib.request as u", "eval('1')", "exec(text)",
    "import os\nos.system('ls')", "import requests", "from socket import socket", "URL = 'https://example.org/x.bin'",
    "__import__('os')",
])
def test_the_scan_finds_what_it_is_for(bad):
    assert findings(bad)


def test_a_module_put_into_evaluation_is_not_eval():
    assert findings("model.eval()\nsocket_type = 'LATENT'") == []


def test_comfyui_brings_every_requirement():
    """requirements.txt is what ComfyUI-Manager installs: absent, or without a requirement."""
    path = ROOT / "requirements.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    assert [line for line in lines if line.split("#")[0].strip()] == []


def test_pyproject_says_what_registries_ask_for():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[tool.comfy]")[1].split("\n[")[0]
    for key in ("PublisherId", "DisplayName", "requires-comfyui"):
        assert re.search(rf'^{key} = "[^"]+"', section, re.MULTILINE), key
    oldest = re.search(r'requires-comfyui = ">=(\d+)\.(\d+)', section)
    recorded = json.loads((ROOT / "tests/data/comfyui/object_info.json").read_text(encoding="utf-8"))["comfyui"]
    stated = re.search(r"^OLDEST = \((\d+), (\d+)\)", (ROOT / "nodes/__init__.py").read_text(encoding="utf-8"),
                       re.MULTILINE)
    assert oldest.groups() == stated.groups() == tuple(recorded.split(".")[:2])
