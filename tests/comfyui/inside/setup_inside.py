"""Start of every program here: ComfyUI's own modules on the CPU, and the pack loaded by path as ComfyUI does."""

import asyncio
import importlib
import importlib.util
import os
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
DATA = REPOSITORY / "tests" / "data"


def load_pack(*flags: str):
    """Import ComfyUI (with command-line flags) and the pack; returns the pack's module `nodes.adapter`."""
    sys.argv = ["main.py", "--cpu", *flags]
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.options

    comfy.options.enable_args_parsing()
    # What a server has imported before it comes to custom nodes.
    import latent_preview  # noqa: F401
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
    pack.import_seconds = time.process_time() - started
    return importlib.import_module("magihuman_pack.nodes.adapter")
