"""The package as a whole: what importing it costs, its public names, and what its files must not hold."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import magihuman_core

ROOT = Path(__file__).parents[2]
PRODUCT = [*(path for room in ("magihuman_core", "nodes") for path in sorted((ROOT / room).rglob("*.py"))),
           ROOT / "__init__.py"]


def test_import_is_quick_and_touches_no_cuda():
    program = ("import time, torch; start = time.process_time(); import magihuman_core; "  # of this process alone
               "magihuman_core.load_dit, magihuman_core.sample_unipc; "
               "print(time.process_time() - start, torch.cuda.is_initialized())")
    for _ in range(3):  # a busy machine gets a second chance
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
        seconds, cuda = done.stdout.split()
        assert cuda == "False"
        if float(seconds) < 0.5:
            break
    assert float(seconds) < 0.5


def test_every_public_name_exists():
    assert [name for name in magihuman_core.__all__ if not hasattr(magihuman_core, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
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
