"""A finished clip: frames, audio, and how they were made."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ..media.frames import Frames
from ..media.mp4 import check_output, write_mp4
from ..media.waveform import OUTPUT_RATE
from ..sizes import FPS


@dataclass(frozen=True)
class Clip:
    """Video and audio of equal length.

    A lazy clip decodes its frames while they are read: `save` then holds only a few of them, whatever the length.
    """

    video: Frames
    audio: Tensor  # fp32 [2, samples]
    sample_rate: int = OUTPUT_RATE
    fps: int = FPS
    metadata: dict[str, Any] = field(default_factory=dict)  # how it was made
    # Normalized (video, audio) that the frames were decoded from, where they are those of the whole clip.
    latents: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @cached_property
    def frames(self) -> Tensor:
        """All frames, uint8 [F, h, w, 3]; those of a lazy clip are decoded now, and kept."""
        return self.video.tensor()

    @property
    def seconds(self) -> float:
        return self.video.count / self.fps

    def decoded(self) -> "Clip":
        """The same clip with its frames in memory."""
        return replace(self, video=Frames.of(self.video.tensor()))

    def save(self, path: str | Path, progress: Callable[[int, int], None] | None = None) -> None:
        """Write an mp4 (H.264 and AAC) that carries `metadata` as JSON under "magihuman"; see media.mp4.write_mp4.

        progress: called with the frames written and those there are. Raises InputError for a name that is no .mp4, and
        for a place where no file can be written.
        """
        check_output(path)
        metadata = {"magihuman": json.dumps(self.metadata, ensure_ascii=False)}
        frames = self.video if progress is None else self.video.counted(progress)
        write_mp4(path, frames, self.audio, fps=self.fps, sample_rate=self.sample_rate, metadata=metadata)
