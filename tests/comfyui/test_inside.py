"""What only ComfyUI's own process can see: the tests of inside/, run by its Python, each reported here by its name."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from server import find_python

INSIDE = Path(__file__).resolve().parent / "inside"
NAMES = [f"{path.name}::{name}" for path in sorted(INSIDE.glob("test_*.py"))
         for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)]
MISSING = re.compile(r"NO CHECKOUT OF \S+|this ComfyUI has no node \w+")  # what else is skipped is a failure


@pytest.fixture(scope="module")
def failures(comfyui, base_directory, tmp_path_factory, request) -> dict[str, list[str]]:
    """{name: what failed}. All tests that were chosen run in one process, as ComfyUI takes its time to start."""
    chosen = [item.callspec.params["name"] for item in request.session.items if "failures" in item.fixturenames]
    report = tmp_path_factory.mktemp("inside") / "report.json"
    environment = {**os.environ, "COMFYUI_PATH": str(comfyui), "MAGIHUMAN_TEST_MODELS": str(base_directory / "models")}
    command = [find_python(comfyui), str(INSIDE / "run.py"), str(Path(pytest.__file__).parents[1]), str(report),
               *(str(INSIDE / name) for name in chosen)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=560, check=False)
    if "NO PYTEST IN COMFYUI" in done.stderr:
        pytest.skip(done.stderr.strip())
    found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    if not set(found) >= set(chosen):
        pytest.fail(f"some tests did not run:\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}", pytrace=False)
    return found


@pytest.mark.timeout(600)  # the first one waits for all
@pytest.mark.parametrize("name", NAMES)
def test_inside_comfyui(failures, name):
    skipped = [text.split("Skipped: ")[-1] for text in failures[name] if " skipped in " in text.split("\n")[0]]
    if skipped and len(skipped) == len(failures[name]) and all(MISSING.search(text) for text in skipped):
        pytest.skip("; ".join(sorted({MISSING.search(text)[0] for text in skipped})))
    if failures[name]:
        pytest.fail("\n\n".join(failures[name]), pytrace=False)
