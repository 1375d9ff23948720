"""Noise from a seed, drawn on the CPU as ComfyUI draws it: a seed means the same clip here and there.

Every drawing is fp32 from a generator of its own, so that it does not depend on the device or on what ran before.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError, shown
from .latents import Shapes

SEEDS = 2**64  # torch's and ComfyUI's range


def check_seed(seed: int) -> None:
    """Raise InputError for what is not a seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise InputError(f"seed is {shown(seed)}, expected a whole number from 0 to 2^64 - 1.")


def start_noise(shapes: Shapes, seed: int) -> tuple[Tensor, Tensor]:
    """What a clip starts from: noise for the video, then for the audio, of the given shapes. Raises InputError."""
    check_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    video, audio = (torch.randn(tuple(shape), generator=generator) for shape in shapes)
    return video, audio


def step_noise(x: Tensor, seed: int | None) -> Callable[[Tensor, Tensor], Tensor]:
    """A noise_sampler(sigma, sigma_next) that gives fresh noise like x; None: a different one each time.

    It draws from the next seed, so that it never repeats the start noise.
    """
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed((seed + 1) % SEEDS)
    return lambda sigma, sigma_next: torch.randn(x.shape, generator=generator).to(x)
