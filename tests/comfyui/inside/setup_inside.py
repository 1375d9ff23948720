"""Start of every program here: ComfyUI's own modules on the CPU, and the pack loaded by path as ComfyUI does."""

import importlib.util
import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
DATA = REPOSITORY / "tests" / "data"


def load_pack(*flags: str):
    """Import ComfyUI (with command-line flags) and the pack; returns the pack's module `nodes.adapter`."""
    sys.argv = ["main.py", "--cpu", *flags]
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch

    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location(
        "magihuman_pack", REPOSITORY / "__init__.py", submodule_search_locations=[str(REPOSITORY)])
    pack = importlib.util.module_from_spec(spec)
    sys.modules["magihuman_pack"] = pack
    spec.loader.exec_module(pack)
    return importlib.import_module("magihuman_pack.nodes.adapter")
