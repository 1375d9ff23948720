"""A real ComfyUI for the tests here: found, given small models, started on loopback, and asked over HTTP.

ComfyUI is looked for at COMFYUI_PATH, then as the parent of this pack (installed as a custom node), then at
~/comfy/ComfyUI. Its Python is COMFYUI_PYTHON, a virtual environment in or beside it, or this one.
"""

import sys
import warnings
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path[:0] = [str(HERE), str(REPOSITORY), str(REPOSITORY / "tests")]

from server import Server, find_comfyui, find_python, front_end_flags  # noqa: E402

collect_ignore = ["inside"]  # runs in ComfyUI's Python: see test_inside.py


def pytest_terminal_summary(terminalreporter):
    """Where nothing here could run, nobody should take the green line for more than it is."""
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", ())]
    for sign in ("NO COMFYUI FOUND", "NO BROWSER TEST", "NO PYTEST IN COMFYUI"):
        count = sum(sign in text for text in skipped)
        if count:
            terminalreporter.section(sign, sep="!", red=True, bold=True)
            terminalreporter.write_line(f"{count} tests of tests/comfyui did not run: see the reasons above.")
    for report in (*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())):
        for name, value in report.user_properties if report.when == "call" else ():
            if name == "front end":
                terminalreporter.write_line(f"The page was ComfyUI's front end {value}.")


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The ComfyUI checkout; without one everything here is skipped, and says so."""
    found = find_comfyui()
    if found is None:
        warnings.warn("NO COMFYUI FOUND: none of the ComfyUI tests ran. Set COMFYUI_PATH to a checkout of version "
                      "0.33 or newer.", stacklevel=1)
        pytest.skip("NO COMFYUI FOUND. Set COMFYUI_PATH to a checkout.")
    return found


@pytest.fixture(scope="session")
def base_directory(tmp_path_factory) -> Path:
    """A folder of ComfyUI's own with the pack as a symbolic link and small models of every kind."""
    from make_random_models import make_models

    base = tmp_path_factory.mktemp("comfyui")
    made = make_models(base / "made")
    for name in ("custom_nodes", "input", "output", "temp", "user/default"):
        (base / name).mkdir(parents=True)
    (base / "custom_nodes" / "magihuman").symlink_to(REPOSITORY, target_is_directory=True)
    (base / "user/default/comfy.settings.json").write_text('{"Comfy.TutorialCompleted": true}', encoding="utf-8")
    models = base / "models"
    for part in ("diffusion_models/magihuman", "text_encoders", "vae", "loras"):
        (models / part).mkdir(parents=True)
    for network in ("distill", "base", "540p_sr", "1080p_sr"):
        (made / network).rename(models / "diffusion_models/magihuman" / network)
    (made / "text_encoder").rename(models / "text_encoders/t5gemma")
    (made / "turbo_vae").rename(models / "vae/turbo_vae")
    (made / "vae/wan2.2_vae.safetensors").rename(models / "vae/wan2.2_vae.safetensors")
    (made / "audio_vae/model.safetensors").rename(models / "vae/stable_audio.safetensors")
    return base


@pytest.fixture(scope="session")
def server(comfyui, base_directory, request):
    """A running server on the CPU."""
    started = Server(find_python(comfyui), comfyui, base_directory, *front_end_flags())
    request.addfinalizer(started.stop)
    started.wait()
    return started
