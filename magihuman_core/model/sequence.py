"""The packed sequence: patches, the order of the modalities, and what follows from the sizes alone.

Tokens stand in the order video, audio, text. Each modality is one contiguous segment, so no
permutation is ever needed and a segment is two plain ints.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
class Layout:
    """What a forward pass needs to know of its sequence; made once for each set of sizes."""

    video: int  # tokens of each modality
    audio: int
    text: int
    frames: int  # latent frames
    piece: int  # tokens that pass through a linear layer at once, at most
    sin: Tensor  # [N, 3B], for the rotary positions
    cos: Tensor

    @property
    def tokens(self) -> int:
        return self.video + self.audio + self.text

    def pieces(self, by_modality: bool) -> Iterator[tuple[str, slice]]:
        """(modality, span of tokens) of at most `piece` tokens each; all of one modality "shared" where it makes no
        difference."""
        start = 0
        for name in MODALITIES if by_modality else ("shared",):
            end = start + (getattr(self, name) if by_modality else self.tokens)
            for first in range(start, end, self.piece):
                yield name, slice(first, min(first + self.piece, end))
            start = end

    def local_windows(self, radius: int) -> Iterator[tuple[slice, slice]]:
        """(tokens of a latent frame, tokens of the video it sees): that frame and `radius` on either side."""
        per_frame = self.video // self.frames
        for frame in range(self.frames):
            first, last = max(0, frame - radius), min(self.frames, frame + radius + 1)
            yield slice(frame * per_frame, (frame + 1) * per_frame), slice(first * per_frame, last * per_frame)


def make_layout(latent: tuple[int, int, int], audio: int, text: int, positions: str, bands: Tensor,
                piece: int) -> Layout:
    """latent: (T, H, W) of the video latent; audio, text: tokens; bands: [B] on the device to compute on."""
    T, H, W = latent
    grid = (T, H // PATCH, W // PATCH)
    sin, cos = rope_tables(token_coordinates(grid, audio, text, positions).to(bands.device), bands.float())
    return Layout(video=grid[0] * grid[1] * grid[2], audio=audio, text=text, frames=T, piece=piece, sin=sin, cos=cos)
