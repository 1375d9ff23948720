"""Texts of different length in one call of the network, so that guidance fetches each weight once.

ComfyUI runs the prompt and the negative prompt together where their conditions can be joined, which its own kinds of
condition allow for equal shapes alone. Attention is joint, so padding must not reach the network: texts are padded for
the way there, and cut to their own lengths in front of the network (ComfyDiT), which runs them block by block.
"""

from dataclasses import dataclass
from typing import Any

import comfy.conds
import torch
import torch.nn.functional as F
from torch import Tensor

from ...magihuman_core.text.script import Segment, segment_at

SCRIPT = "magihuman_script"  # of an entry of CONDITIONING: its Script


@dataclass(frozen=True)
class Script:
    """The parts of a clip and the text [1, n, d] of each, as an entry of CONDITIONING carries them."""

    segments: tuple[Segment, ...]
    texts: tuple[Tensor, ...]

    def at(self, frame: float) -> Tensor:
        """The text of the part in which a place lies. frame: in latent frames of the clip."""
        return self.texts[segment_at(self.segments, frame)]


class ScriptCond(comfy.conds.CONDRegular):
    """A condition that follows from a text, and so changes from window to window where there is a script."""

    def __init__(self, cond: Any, script: Script | None = None):
        super().__init__(cond)
        self.script = script

    @classmethod
    def of(cls, text: Tensor, script: Script | None = None) -> "ScriptCond":
        """The condition of a text [B, n, d]. script: where the clip's parts have their own."""
        return cls(text, script)

    def at(self, frame: float) -> "ScriptCond":
        """For a window whose middle is this latent frame."""
        return self if self.script is None else self.of(self.script.at(frame))


class TextCond(ScriptCond):
    """A text [B, n, d], joined with others of any length by padding."""

    def can_concat(self, other) -> bool:
        a, b = self.cond, other.cond
        return (a.shape[0], a.shape[2], a.device, a.dtype) == (b.shape[0], b.shape[2], b.device, b.dtype)

    def concat(self, others) -> Tensor:
        texts = [self.cond, *(other.cond for other in others)]
        longest = max(text.shape[1] for text in texts)
        return torch.cat([F.pad(text, (0, 0, 0, longest - text.shape[1])) for text in texts])


class LengthCond(ScriptCond):
    """The length of a text; of several that are joined, one after another."""

    @classmethod
    def of(cls, text: Tensor, script: Script | None = None) -> "LengthCond":
        return cls((text.shape[1],), script)

    def process_cond(self, batch_size, **_) -> "LengthCond":
        return self

    def can_concat(self, other) -> bool:
        return True

    def concat(self, others) -> tuple[int, ...]:
        return sum((other.cond for other in others), self.cond)

    def size(self) -> list[int]:
        return [len(self.cond)]
