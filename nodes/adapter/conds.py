"""Texts of different length in one call of the network, so that guidance fetches each weight once.

ComfyUI runs the prompt and the negative prompt together where their conditions can be joined, which its own kinds of
condition allow for equal shapes alone. Attention is joint, so padding must not reach the network: texts are padded for
the way there, and cut to their own lengths in front of the network (ComfyDiT), which runs them block by block.
"""

import comfy.conds
import torch
import torch.nn.functional as F
from torch import Tensor


class TextCond(comfy.conds.CONDRegular):
    """A text [B, n, d], joined with others of any length by padding."""

    def can_concat(self, other) -> bool:
        a, b = self.cond, other.cond
        return (a.shape[0], a.shape[2], a.device, a.dtype) == (b.shape[0], b.shape[2], b.device, b.dtype)

    def concat(self, others) -> Tensor:
        texts = [self.cond, *(other.cond for other in others)]
        longest = max(text.shape[1] for text in texts)
        return torch.cat([F.pad(text, (0, 0, 0, longest - text.shape[1])) for text in texts])


class LengthCond(comfy.conds.CONDRegular):
    """The length of a text; of several that are joined, one after another."""

    def __init__(self, cond: tuple[int, ...]):
        super().__init__(cond)

    def process_cond(self, batch_size, **_) -> "LengthCond":
        return self

    def can_concat(self, other) -> bool:
        return True

    def concat(self, others) -> tuple[int, ...]:
        return sum((other.cond for other in others), self.cond)

    def size(self) -> list[int]:
        return [len(self.cond)]
