"""All noise of a clip from one seed, in one order, so that another program can draw the same."""

from collections.abc import Callable

import torch
from torch import Tensor

from .errors import InputError
from .sequence import pack_latents


class NoiseSource:
    """Normal noise from one CPU generator, fp32, so that a seed means the same on every device.

    The order is the reference's: initial audio (not where a sound drives the clip), initial video; for the
    distilled model at each step, the last included, video then audio; for super-resolution video, then audio.
    Audio is drawn with time before channels, [B, A, a], and handed out as [B, a, A].
    """

    def __init__(self, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise InputError(f"seed is {seed!r}, expected a whole number from 0 to 2^63 - 1.")
        self.generator = torch.Generator().manual_seed(seed)

    def video(self, shape) -> Tensor:
        """[B, C, T, H, W]."""
        return torch.randn(tuple(shape), generator=self.generator)

    def audio(self, shape) -> Tensor:
        """shape [B, a, A] -> noise of that shape."""
        batch, channels, count = shape
        return torch.randn((batch, count, channels), generator=self.generator).transpose(1, 2).contiguous()

    def packed(self, shapes) -> Tensor:
        """One step's noise of both streams, as pack_latents packs them: [B, 1, n]."""
        video = self.video(shapes[0])
        return pack_latents(video, self.audio(shapes[1]))[0]

    def sampler(self, shapes, device: torch.device | str = "cpu") -> Callable[[Tensor, Tensor], Tensor]:
        """A noise_sampler(sigma, sigma_next) for sample_renoise."""
        return lambda sigma, sigma_next: self.packed(shapes).to(device)
