"""What a clip is to be made from: read, checked, and brought to its final sizes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import InputError
from ..media.audio_file import load_audio
from ..media.image import load_image, to_rgb
from ..media.waveform import to_stereo
from ..sizes import audio_tokens, snap_size, upscaled_size
from ..text.prompt import check_prompt

if TYPE_CHECKING:
    from PIL import Image

Progress = Callable[[str, int, int], None]  # stage, done, total

DEFAULT_SECONDS = 4
LONG_SECONDS = 20

log = logging.getLogger(__name__)


@dataclass
class Job:
    """One clip's ingredients; the first stages of the pipeline add what they encode."""

    size: tuple[int, int]  # width, height of the base picture, pixels
    large: tuple[int, int] | None  # the same after super-resolution
    tokens: int | None  # audio latents; None: as many as the driving sound gives
    picture: Image.Image | None
    sound: tuple[Tensor, int] | None  # [2, samples] and their rate
    seed: int
    progress: Progress
    text: Tensor | None = None
    negative: Tensor | None = None
    picture_latents: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # by pixel size
    sound_latent: Tensor | None = None


def prepare_job(prompt, image, audio, seconds, size, upscale, seed, progress) -> Job:
    """Check and read all input of MagiHumanPipeline.generate. Raises InputError."""
    for remark in check_prompt(prompt):
        log.warning("Prompt: %s", remark)
    size = snap_size(*size)
    tokens = audio_tokens(DEFAULT_SECONDS if seconds is None else seconds)
    if image is not None:
        image = load_image(image) if isinstance(image, (str, Path)) else to_rgb(image)
    sound = None
    if audio is not None:
        sound = _driving_sound(audio, seconds)
        tokens, seconds = None, sound[0].shape[1] / sound[1]
    if (seconds or 0) > LONG_SECONDS:
        log.warning("%.0f s is long: the model was made for clips of 4 to 10 s.", seconds)
    large = None if upscale is None else upscaled_size(*size, upscale)
    return Job(size, large, tokens, image, sound, seed, progress or (lambda *_: None))


def _driving_sound(audio, seconds: float | None) -> tuple[Tensor, int]:
    """A file, or (waveform [channels, samples], rate), as stereo and cut to seconds."""
    if isinstance(audio, (str, Path)):
        return load_audio(audio, seconds)
    waveform, rate = audio
    if waveform.ndim != 2 or 0 in waveform.shape or rate <= 0:
        raise InputError(f"audio has shape {tuple(waveform.shape)} at {rate} samples/s, "
                         "expected [channels, samples] and a rate.")
    return to_stereo(waveform.float())[:, : None if seconds is None else round(seconds * rate)], rate
