"""Files of weights: how they are written, and where the demo's own are."""

import json
import struct
from pathlib import Path

from safetensors.torch import save

from magihuman_core.atomic import whole_file
from training import checkpoints
from training.common import Stop

DEMO = Path(__file__).parent.parent / "magihuman_core" / "demo"
VERSION = "1"
SOURCE = "trained by this project on drawn, synthetic clips; see CARD.md"  # in the demo's own files


def write(path, tensors, **metadata):
    """One safetensors file, whole or not at all, of the same bytes every time. Returns its size in bytes.

    Raises Stop where a weight is not finite.
    """
    check_finite(path, tensors)
    tensors = {key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}
    content = save(tensors, {"format": "pt", "version": VERSION, **metadata})
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(file_bytes(*split_file(content)))
    path.chmod(0o644)
    return path.stat().st_size


def check_finite(path, tensors):
    """Raises Stop where a weight that is to be written to a file is not finite."""
    for key, tensor in tensors.items():
        if not checkpoints.all_finite(tensor):
            raise Stop(f"{key} of {path.name} is not finite: nothing was written to {path.parent}.")


def split_file(content):
    """(header as a dictionary, bytes of the tensors) of a safetensors file's bytes."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def file_bytes(header, data):
    """The file again, its header in alphabetical order: the library writes metadata in any order."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def refuse_demo(folder, allowed):
    """Raises Stop where the shipped weights or their card would be overwritten without being asked."""
    if folder.resolve() == DEMO.resolve() and not allowed:
        raise Stop("This would overwrite what the project ships: add --overwrite-demo if that is meant.")
