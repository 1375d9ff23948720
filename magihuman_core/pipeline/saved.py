"""A clip's latents in a file, to be decoded later, or again where decoding failed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.json_file import read_json_object
from ..checkpoint.lazy_tensor import InMemory
from ..checkpoint.open import open_stored
from ..checkpoint.write import write_checkpoint
from ..errors import CheckpointError, InputError
from ..media.mp4 import check_output

FORMAT = "magihuman latents"  # under "kind" in the file's metadata


@dataclass(frozen=True)
class SavedClip:
    """All that a clip is decoded from.

    video: [1, C, T, H, W], normalized. audio: what is decoded to the clip's audio, [1, a, A]; or waveform: the clip's
    audio itself where it was given, fp32 [2, samples] at 44.1 kHz. facts: how the clip was made.
    """

    video: Tensor
    audio: Tensor | None
    waveform: Tensor | None
    facts: Mapping[str, Any]

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file, which appears only when it is whole. Raises CheckpointError."""
        named = {"video": self.video, "audio": self.audio, "waveform": self.waveform}
        entries = {name: InMemory(tensor.detach().cpu().contiguous()) for name, tensor in named.items()
                   if tensor is not None}
        metadata = {"kind": FORMAT, "magihuman": json.dumps(self.facts, ensure_ascii=False)}
        write_checkpoint(path, entries, metadata)


def load_clip(path: str | Path) -> SavedClip:
    """Read what SavedClip.save wrote. Raises InputError for another file, CheckpointError for a damaged one."""
    checkpoint = open_stored(path)
    if checkpoint.metadata.get("kind") != FORMAT:
        raise InputError(f"{path}: holds no latents of a clip. Give a file that --save-latents wrote.")
    return SavedClip(_tensor(checkpoint, "video", 5, 1), *_sound(checkpoint),
                     read_json_object(checkpoint.metadata.get("magihuman", "")) or {})


def check_target(path: str | Path) -> Path:
    """Make sure, before long work starts, that latents can be written there; raises InputError.

    Of what is there already only other latents are replaced: a file of the same kind may be a model.
    """
    path = check_output(path, suffix=".safetensors", what="clip's latents")
    if path.exists():
        try:
            load_clip(path)
        except (InputError, CheckpointError):
            raise InputError(f"{path}: is there already, and holds no latents of a clip. Give another name.") from None
    return path


def _sound(checkpoint: Checkpoint) -> tuple[Tensor | None, Tensor | None]:
    if "waveform" in checkpoint:
        return None, _tensor(checkpoint, "waveform", 2, 2)
    return _tensor(checkpoint, "audio", 3, 1), None


def _tensor(checkpoint: Checkpoint, name: str, dimensions: int, first: int) -> Tensor:
    entry = checkpoint.entries.get(name)
    if entry is None or len(entry.shape) != dimensions or entry.shape[0] != first or not entry.numel or (
            not entry.dtype.is_floating_point):
        raise CheckpointError(f"{checkpoint.name}: its {name} is missing or has another shape than latents have. "
                              "Make the clip anew.")
    return entry.read(torch.float32)
