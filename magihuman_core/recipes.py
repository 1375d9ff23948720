"""How each of the four networks is used: what no checkpoint records, and what the model's authors sampled with.

A network's role (base, distilled, sr_540p, sr_1080p) leaves no trace in its weights. Whatever depends on it is read
from its Recipe, here and nowhere else.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from .errors import InputError, shown
from .sizes import PIXELS_PER_TOKEN, floor_size


@dataclass(frozen=True)
class Guidance:
    """How far to go from the unconditional to the conditional velocity, for each stream (docs/model.md).

    video while the integer timestep is above 500, video_late after; audio throughout. Latent frames before
    `first_frames` get at most `first_frames_scale`.
    """

    video: float = 5.0
    video_late: float = 2.0
    audio: float = 5.0
    first_frames: int = 0
    first_frames_scale: float = 2.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"guidance: {field.name} is {shown(value)}, "
                                 f"expected a number, such as {field.default}.")


FULL_GUIDANCE = Guidance()
SR_GUIDANCE = Guidance(3.5, 3.5, first_frames=13)


@dataclass(frozen=True)
class Recipe:
    """What follows from a network's role."""

    role: str
    description: str
    width: int  # pixels, of the clips it was made for; with the height also the area of other shapes
    height: int
    steps: int
    solver: str  # "unipc" or "renoise"
    guidance: Guidance | None = None  # None: one evaluation a step, with the prompt alone
    positions: str = "v2"  # see model/rope.py
    global_layers: tuple[int, ...] | None = None  # all other layers have local attention; None: none has
    local_radius: int = 11  # latent frames to both sides that local attention sees
    super_resolution: bool = False  # starts from a finished clip instead of noise, and leaves its audio as it is
    noise_level: int = 0  # entry of super_resolution.zero_snr_table that covers that clip
    audio_noise: float = 0.0  # share of noise in the audio that super-resolution hears
    window: float = 5.0  # seconds made in one piece; trained on 4 to 10, longer clips are made in windows

    @property
    def area(self) -> int:
        """Pixels of one frame."""
        return self.width * self.height

    def overrides(self, layers: int) -> dict[str, Any]:
        """The fields of DiTConfig that no checkpoint records. layers: of the network."""
        if self.global_layers is None:
            return {"positions": self.positions}
        local = tuple(layer for layer in range(layers) if layer not in self.global_layers)
        return {"positions": self.positions, "local_layers": local, "local_radius": self.local_radius}


BASE = Recipe("base", "base: 32 steps with guidance", 448, 256, steps=32, solver="unipc", guidance=FULL_GUIDANCE)
DISTILLED = Recipe("distilled", "distilled: 8 steps without guidance", BASE.width, BASE.height, steps=8,
                   solver="renoise")
SR_540P = Recipe("sr_540p", "super-resolution to 540p", 896, 512, steps=5, solver="unipc",
                 positions="v1", super_resolution=True, noise_level=220, audio_noise=0.7)
SR_1080P = replace(SR_540P, role="sr_1080p", description="super-resolution to 1080p, with local attention", width=1920,
                   height=1088, global_layers=(3, 7, 11, 15, 19, 23, 27, 31))
# What the built-in demo makes instead unless told otherwise: pixels of each side, of the first pass and after
# super-resolution, and seconds. All sizes that its first pass was trained on (demo/CARD.md).
DEMO_SIDE, DEMO_LARGE, DEMO_SECONDS = 128, 256, 2
DEMO_SIZES = ((128, 128), (96, 160), (160, 96))
RECIPES: Mapping[str, Recipe] = MappingProxyType({r.role: r for r in (BASE, DISTILLED, SR_540P, SR_1080P)})
UPSCALERS: Mapping[str, Recipe] = MappingProxyType({"540p": SR_540P, "1080p": SR_1080P})  # by the name of the target


def upscaled_size(width: int, height: int, target: str | tuple[int, int]) -> tuple[int, int]:
    """The pixel size that super-resolution gives a base clip of width x height.

    target: "540p" or "1080p", the area of these at the clip's own aspect ratio (the base size becomes exactly
    896x512 or 1920x1088), or a (width, height). Raises InputError.
    """
    if isinstance(target, str):
        if target not in UPSCALERS:
            raise InputError(f"upscale is {shown(target)}, expected 540p, 1080p or WIDTHxHEIGHT.")
        factor = math.sqrt(UPSCALERS[target].area / (width * height))
        return _whole_tokens(width * factor), _whole_tokens(height * factor)
    if not isinstance(target, (tuple, list)) or len(target) != 2:
        raise InputError(f"upscale is {shown(target)}, expected 540p, 1080p or a width and a height.")
    return floor_size(*target)


def _whole_tokens(side: float) -> int:
    """Pixels, rounded to whole tokens."""
    return max(1, round(side / PIXELS_PER_TOKEN)) * PIXELS_PER_TOKEN


def upscaler_for(width: int, height: int) -> Recipe:
    """The super-resolution network whose own area is closer to a size in pixels, by ratio."""
    return SR_1080P if (width * height) ** 2 > SR_540P.area * SR_1080P.area else SR_540P
