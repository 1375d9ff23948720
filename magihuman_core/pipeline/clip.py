"""A finished clip: frames, audio, and how they were made."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..media.mp4 import write_mp4
from ..media.waveform import OUTPUT_RATE
from ..sizes import FPS


@dataclass(frozen=True)
class Clip:
    """Frames and audio of equal length."""

    frames: Tensor  # uint8 [F, h, w, 3]
    audio: Tensor  # fp32 [2, samples]
    sample_rate: int = OUTPUT_RATE
    fps: int = FPS
    metadata: dict[str, Any] = field(default_factory=dict)  # how it was made

    @property
    def seconds(self) -> float:
        return self.frames.shape[0] / self.fps

    def save(self, path: str | Path) -> None:
        """Write an mp4 (H.264 and AAC) that carries `metadata` as JSON under "magihuman"; see media.mp4.write_mp4."""
        metadata = {"magihuman": json.dumps(self.metadata, ensure_ascii=False)}
        write_mp4(path, self.frames, self.audio, fps=self.fps, sample_rate=self.sample_rate, metadata=metadata)
