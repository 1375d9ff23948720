"""A real ComfyUI for the tests here: found, given small models, started on loopback, and asked over HTTP.

ComfyUI is looked for at COMFYUI_PATH, then as the parent of this pack (installed as a custom node), then at
~/comfy/ComfyUI. Its Python is COMFYUI_PYTHON, a virtual environment in or beside it, or this one.
"""

import shutil
import sys
import warnings
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path[:0] = [str(HERE), str(REPOSITORY), str(REPOSITORY / "tests")]

from server import Server, find_comfyui, find_python, front_end_flags, make_base  # noqa: E402

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
    """ComfyUI's folder, with the pack, small models under the names of the large ones, and files to load."""
    from make_random_models import make_models

    from magihuman_core.tools.convert import convert

    base = make_base(tmp_path_factory.mktemp("comfyui"))
    made = make_models(base / "made")
    (made / "text_encoder/model.safetensors").rename(made / "text_encoder/model-00001-of-00001.safetensors")
    for source, name in {
        **{network: f"diffusion_models/magihuman/{network}" for network in ("distill", "base", "540p_sr", "1080p_sr")},
        "text_encoder": "text_encoders/t5gemma-9b-9b-ul2",
        "turbo_vae": "vae/turbo_vae",
        "vae/wan2.2_vae.safetensors": "vae/wan2.2_vae.safetensors",
        "audio_vae": "vae/stable-audio-open-1.0",
    }.items():
        target = base / "models" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (made / source).rename(target)
    # The networks of the example workflows, in one file each or as other people cut them.
    folder = base / "models/diffusion_models"
    for source, name in {"distill": "magi_human_distill_quanto_bf16_int8", "base": "magi_human_quanto_bf16_int8",
                         "1080p_sr": "magi_human_sr1080_quanto_bf16_int8"}.items():
        convert(folder / "magihuman" / source, folder / f"{name}.safetensors")
    shutil.copytree(folder / "magihuman/540p_sr", folder / "magihuman/540p_sr_fp8")
    write_media(base / "input")
    return base


def write_media(folder: Path) -> None:
    """picture.png of 80x120, voice.wav of 0.6 s, clip.mp4 of 33 frames of 64x96 with audio."""
    import soundfile
    import torch
    from PIL import Image

    from magihuman_core.media.mp4 import write_mp4

    Image.linear_gradient("L").resize((80, 120)).convert("RGB").save(folder / "picture.png")
    soundfile.write(folder / "voice.wav", (0.3 * torch.sin(torch.arange(9600) * 0.08)).numpy(), 16000)
    frames = torch.tensor([90, 160, 0], dtype=torch.uint8).repeat(33, 96, 64, 1)
    frames[..., 2] = 5 * torch.arange(33)[:, None, None]
    write_mp4(folder / "clip.mp4", frames, 0.2 * torch.sin(torch.arange(58212) * 0.03).repeat(2, 1))


@pytest.fixture(scope="session")
def server(comfyui, base_directory):
    """A running server on the CPU."""
    with Server(find_python(comfyui), comfyui, base_directory, *front_end_flags()) as started:
        yield started
