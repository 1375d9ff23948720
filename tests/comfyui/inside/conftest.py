"""Tests inside of ComfyUI: in its Python, with its modules on the CPU, and the pack loaded by path as a server does it.

tests/comfyui/test_inside.py starts them. They need two environment variables: COMFYUI_PATH, the checkout, and
MAGIHUMAN_TEST_MODELS, the models folder that tests/comfyui/conftest.py fills.
"""

import asyncio
import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


def load_pack() -> float:
    """Import ComfyUI and then the pack, as magihuman_pack; returns the seconds of CPU that the pack took."""
    sys.argv = ["main.py", "--cpu"]
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.options

    comfy.options.enable_args_parsing()
    # What a server has imported before it comes to custom nodes.
    import latent_preview  # noqa: F401
    import server  # noqa: F401
    import torch

    import nodes  # noqa: F401

    torch.set_num_threads(1)
    started = time.process_time()
    spec = importlib.util.spec_from_file_location(
        "magihuman_pack", REPOSITORY / "__init__.py", submodule_search_locations=[str(REPOSITORY)])
    pack = importlib.util.module_from_spec(spec)
    sys.modules["magihuman_pack"] = pack
    spec.loader.exec_module(pack)
    asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    return time.process_time() - started


IMPORT_SECONDS = load_pack()  # before the modules of tests, which import from comfy and from the pack

import small_clip  # noqa: E402
import torch  # noqa: E402
from magihuman_pack.magihuman_core.weights.open import open_checkpoint  # noqa: E402
from magihuman_pack.nodes.adapter.load_model import load_model  # noqa: E402


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Whatever ran before, and whichever tests were chosen."""
    small_clip.generator.manual_seed(3)


@pytest.fixture(scope="session")
def import_seconds() -> float:
    return IMPORT_SECONDS


@pytest.fixture(scope="session")
def models() -> Path:
    """ComfyUI's models folder with small random models in it."""
    return Path(os.environ["MAGIHUMAN_TEST_MODELS"])


@pytest.fixture(scope="session")
def distilled(models) -> Path:
    return models / "diffusion_models/magihuman/distill"


@pytest.fixture(scope="session")
def official(distilled) -> dict:
    """The distilled network's tensors under their official names."""
    return dict(open_checkpoint(distilled).items())


@pytest.fixture(scope="session")
def model(distilled):
    """The distilled MODEL in fp32. Tests patch clones of it."""
    return load_model(distilled, "distilled", torch.float32)


@pytest.fixture(scope="session")
def plain(model):
    """The clip that it makes."""
    return small_clip.sample(model)
