"""What a clip is to be made from: read, checked, and brought to its final sizes before anything is computed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import InputError
from ..loading.folder import ModelFolder
from ..media.audio_file import load_audio
from ..media.image import load_image, to_rgb
from ..media.waveform import to_stereo
from ..recipes import RECIPES, SR_540P, SR_1080P, UPSCALERS, Guidance, Recipe, upscaled_size, upscaler_for
from ..runtime.lora import check_strength
from ..runtime.streaming import check_resident_blocks
from ..sampling.noise import check_seed
from ..sizes import audio_length, floor_size
from ..text.prompt import DEFAULT_NEGATIVE_PROMPT, check_prompt
from ..vae.tiling import OVERLAP
from ..weights.dit_keys import network_config
from ..weights.open import open_checkpoint
from .parts import Parts

if TYPE_CHECKING:
    from PIL import Image

Progress = Callable[[str, int, int], None]  # stage, done, total
Size = tuple[int, int]  # width, height, in pixels
Waveform = tuple[Tensor, int]  # [2, samples], and samples per second

DEFAULT_SECONDS = 4
LONG_SECONDS = 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pass:
    """One network's work at a clip: it is made from noise, or a finished one gets super-resolution."""

    recipe: Recipe
    size: Size
    steps: int
    guidance: Guidance | None  # None: without a negative prompt

    @property
    def name(self) -> str:
        return f"{self.recipe.role} network"


@dataclass(frozen=True)
class Request:
    """One clip's ingredients."""

    prompt: str
    negative: str | None  # None: not used
    image: Image.Image | None  # RGB
    audio: Waveform | None  # what drives the clip, and becomes its audio
    audio_length: int  # audio latents, where no audio drives the clip
    first: Pass
    upscaling: Pass | None
    seed: int

    @property
    def passes(self) -> list[Pass]:
        return [self.first] if self.upscaling is None else [self.first, self.upscaling]

    @property
    def facts(self) -> dict[str, Any]:
        """How the clip is made, for its metadata."""
        width, height = self.first.size
        return {"prompt": self.prompt, "seed": self.seed, "model": self.first.recipe.role, "steps": self.first.steps,
                "width": width, "height": height, "upscale": list(self.upscaling.size) if self.upscaling else None,
                "image": self.image is not None, "driven_by_sound": self.audio is not None}


def make_request(parts: Parts, prompt: str, *, negative: str | None, image: str | Path | Image.Image | None,
                 audio: str | Path | Waveform | None, seconds: float | None, size: Size, seed: int, steps: int | None,
                 mode: str | None, upscale: str | Size | None, sr_steps: int, guidance: Guidance | None) -> Request:
    """Check and read the input of MagiHumanPipeline.generate, which says what each of them is.

    Raises InputError for what no clip can be made from, CheckpointError where a part is missing or is something else.
    """
    recipe = RECIPES[parts.models.network(mode)]
    steps = recipe.steps if steps is None else steps
    for name, value in (("steps", steps), ("sr_steps", sr_steps)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1000:
            raise InputError(f"{name} is {value!r}, expected a whole number from 1 to 1000.")
    check_seed(seed)
    for remark in check_prompt(prompt):
        log.warning("Prompt: %s", remark)
    size = floor_size(*size)
    length = audio_length(DEFAULT_SECONDS if seconds is None else seconds)
    image = None if image is None else read_image(image)
    driving = None if audio is None else read_audio(audio, seconds)
    if driving is not None:
        seconds = driving[0].shape[1] / driving[1]
    if seconds is not None and seconds > LONG_SECONDS:
        log.warning("%.0f s is long: the model was made for clips of 4 to 10 s.", seconds)
    upscaling = None
    if upscale is not None:
        large = upscaled_size(*size, upscale)
        upscaling = Pass(choose_upscaler(parts.models, upscale, large), large, sr_steps, None)
    if recipe.guidance is not None:
        guidance, negative = guidance or recipe.guidance, negative or DEFAULT_NEGATIVE_PROMPT
    elif negative is not None or guidance is not None:
        log.warning("The %s network is used without guidance: the negative prompt is not read.", recipe.role)
        guidance = negative = None
    request = Request(prompt, negative, image, driving, length, Pass(recipe, size, steps, guidance), upscaling, seed)
    _check_parts(parts, request)
    return request


def read_image(image: str | Path | Image.Image) -> Image.Image:
    """A file, or an image in memory, as RGB and upright. Raises InputError."""
    return load_image(image) if isinstance(image, (str, Path)) else to_rgb(image)


def read_audio(audio: str | Path | Waveform, seconds: float | None) -> Waveform:
    """A file, or (waveform [channels, samples], rate), as stereo and cut to seconds. Raises InputError."""
    if isinstance(audio, (str, Path)):
        return load_audio(audio, seconds)
    waveform, rate = audio
    if waveform.ndim != 2 or 0 in waveform.shape or rate <= 0:
        raise InputError(f"audio has shape {tuple(waveform.shape)} at {rate} samples/s, "
                         "expected [channels, samples] and a rate.")
    return to_stereo(waveform.float())[:, : None if seconds is None else round(seconds * rate)], rate


def choose_upscaler(models: ModelFolder, upscale: str | Size, size: Size) -> Recipe:
    """The super-resolution network for a target: by its name, else by the area. Raises CheckpointError without it."""
    if isinstance(upscale, str):
        return RECIPES[models.require(UPSCALERS[upscale].role, f"upscaling to {upscale}")]
    best = upscaler_for(*size)
    other = SR_540P if best is SR_1080P else SR_1080P
    chosen = other if other.role in models and best.role not in models else best
    return RECIPES[models.require(chosen.role, "upscaling")]


def _check_parts(parts: Parts, request: Request) -> None:
    """Raise InputError for options that no part can be run with, CheckpointError unless all parts are there."""
    if parts.tile is not None and parts.tile <= OVERLAP:
        raise InputError(f"tile is {parts.tile}, expected more than {OVERLAP} latent pixels, which tiles overlap by.")
    check_resident_blocks(parts.resident_blocks)
    for file, strength in parts.loras:
        check_strength(strength)
        open_checkpoint(file)  # reads the header only
    for pass_ in request.passes:
        network_config(parts.open(pass_.recipe.role))  # reads the header only, and so finds what is not a network
    parts.models.require("text_encoder", "reading the prompt")
    parts.models.require("audio_vae", "sound")
    if request.image is not None:
        parts.models.require("video_vae", "a reference picture (--image)")
    if "turbo_vae" not in parts.models:
        parts.models.require("video_vae", "decoding the picture")
