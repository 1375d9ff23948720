"""The package as a whole: what importing it costs, what it may import, and what its files must not hold."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "magihuman_core").rglob("*.py"))
PRODUCT = [*CORE, *sorted((ROOT / "nodes").rglob("*.py")), ROOT / "__init__.py"]


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_quick_and_touches_no_cuda():
    code = """
import time, torch
start = time.perf_counter()
import magihuman_core
magihuman_core.load_dit, magihuman_core.sample_unipc
print(time.perf_counter() - start, torch.cuda.is_initialized())
"""
    times = []
    for _ in range(3):
        seconds, cuda = run(code).split()
        assert cuda == "False"
        times.append(float(seconds))
    assert min(times) < 0.5


def test_every_public_name_exists():
    run("import magihuman_core as m; [getattr(m, name) for name in m.__all__]")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        import magihuman_core

        _ = magihuman_core.nonsense


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_rules(path):
    """Rules no linter has: ASCII only (some registries refuse more), and nothing that acts at import."""
    text = path.read_text(encoding="utf-8")
    assert text.isascii()
    assert not re.search(r"torch\.load\((?![^)]*weights_only=True)", text), "torch.load without weights_only=True"
    assert not re.search(r"\.cuda\(", text), "a device is the caller's choice"
    for node in ast.parse(text).body:
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
            raise AssertionError(f"line {node.lineno} acts when the module is imported")


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_knows_nothing_of_comfyui(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        for name in names:
            assert name.split(".")[0] not in ("comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes")
