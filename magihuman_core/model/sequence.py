"""The packed sequence: patches, the order of the modalities, and what follows from the sizes alone.

Tokens stand in the order video, audio, text. Each modality is one contiguous segment, so no
permutation is ever needed and a segment is two plain ints.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor

from .config import PATCH
from .rope import rope_tables, token_coordinates

MODALITIES = ("video", "audio", "text")


def patchify(video: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B, T*H/2*W/2, C*4]: going in, a token's channels are (C, pH, pW), C slowest."""
    return rearrange(video, "b c t (h p) (w q) -> b (t h w) (c p q)", p=PATCH, q=PATCH)


def unpatchify(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """[B, T*H/2*W/2, 4*C] -> [B, C, T, H, W]: coming out, a token's channels are (pH, pW, C), C fastest.

    The difference to `patchify` is the model's own; the trained weights rely on it.
    size: (T, H, W) of the latent.
    """
    T, H, W = size
    pattern = "b (t h w) (p q c) -> b c t (h p) (w q)"
    return rearrange(tokens, pattern, t=T, h=H // PATCH, w=W // PATCH, p=PATCH, q=PATCH)


@dataclass(frozen=True)
class Segments:
    """Where the tokens of one clip stand: video, audio, text, from `start` on."""

    start: int
    video: int  # tokens of each modality
    audio: int
    text: int
    frames: int  # latent frames

    @property
    def tokens(self) -> int:
        return self.video + self.audio + self.text

    @property
    def span(self) -> slice:
        return slice(self.start, self.start + self.tokens)

    def spans(self, by_modality: bool) -> Iterator[tuple[str, slice]]:
        """(modality, its tokens); all tokens as "shared" where the modality makes no difference."""
        start = self.start
        for name in MODALITIES if by_modality else ("shared",):
            end = start + (getattr(self, name) if by_modality else self.tokens)
            yield name, slice(start, end)
            start = end


# attention(q, k, v, clip): of the tokens of one clip.
ClipAttention = Callable[[Tensor, Tensor, Tensor, Segments], Tensor]


@dataclass(frozen=True)
class Layout:
    """What a forward pass needs to know of its sequence; made once for each set of sizes.

    Several clips may be packed one after another, such as one with its prompt and again with the negative prompt:
    they share every weight that comes in, and do not see each other.
    """

    clips: tuple[Segments, ...]
    piece: int  # tokens that pass through a linear layer at once, at most
    sin: Tensor  # [N, 3B], for the rotary positions
    cos: Tensor

    @property
    def tokens(self) -> int:
        return sum(clip.tokens for clip in self.clips)

    def alone(self, clip: Segments) -> "Layout":
        """The layout of one of the clips by itself."""
        return Layout((replace(clip, start=0),), self.piece, self.sin[clip.span], self.cos[clip.span])

    def spans(self, by_modality: bool) -> Iterator[tuple[str, slice]]:
        """(modality, its tokens) of each clip after the other, as Segments.spans."""
        for clip in self.clips:
            yield from clip.spans(by_modality)

    def pieces(self, by_modality: bool) -> dict[str, list[slice]]:
        """Modality -> spans of about equal numbers of tokens, at most `piece` each."""
        pieces: dict[str, list[slice]] = {}
        for name, span in self.spans(by_modality):
            count, length = span.stop - span.start, -(-(span.stop - span.start) // self.piece)
            edges = [span.start + count * i // length for i in range(length + 1)] if length else []
            pieces.setdefault(name, []).extend(slice(*edge) for edge in pairwise(edges))
        return pieces

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attention: ClipAttention) -> list[Tensor]:
        """The attention of each clip to itself: q [B, N, heads, d], k, v -> parts of [B, N, heads, d], in order."""
        return [attention(q[:, clip.span], k[:, clip.span], v[:, clip.span], clip) for clip in self.clips]


def make_layout(sizes: Sequence[tuple[tuple[int, int, int], int, int]], positions: str, bands: Tensor,
                piece: int) -> Layout:
    """sizes: of each clip the latent's (T, H, W), audio and text tokens; bands: [B] on the device to compute on."""
    clips: list[Segments] = []
    coordinates = []
    for (T, H, W), audio, text in sizes:
        start = clips[-1].span.stop if clips else 0
        grid = (T, H // PATCH, W // PATCH)
        clips.append(Segments(start, grid[0] * grid[1] * grid[2], audio, text, T))
        coordinates.append(token_coordinates(grid, audio, text, positions))
    sin, cos = rope_tables(torch.cat(coordinates).to(bands.device), bands.float())
    return Layout(tuple(clips), piece, sin, cos)
