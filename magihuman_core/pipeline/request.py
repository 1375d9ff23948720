"""What a clip is to be made from: read, checked, and brought to its final sizes before anything is computed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import TIP, InputError, shown
from ..loading.folder import ModelFolder
from ..media.audio_file import load_audio
from ..media.image import load_image, to_rgb, warn_of_cropping
from ..media.waveform import as_audio
from ..recipes import (
    BASE,
    DEMO_SECONDS,
    DEMO_SIDE,
    DEMO_SIZES,
    RECIPES,
    SR_540P,
    SR_1080P,
    UPSCALERS,
    Guidance,
    Recipe,
    upscaled_size,
    upscaler_for,
)
from ..runtime.devices import check_dtype
from ..runtime.fuse import can_fuse
from ..runtime.lora import check_lora, check_strength
from ..runtime.streaming import check_resident_blocks, check_stream_from
from ..sampling.noise import check_seed
from ..sampling.solvers import flow_sigmas
from ..sampling.windows import OVERLAP as WINDOW_OVERLAP
from ..sampling.windows import plan_windows, shared_frames, window_frames
from ..sizes import (
    FPS,
    audio_length,
    covering_length,
    decoded_frames,
    floor_size,
    frames_of,
    latent_frames,
    latent_of_frame,
    shape_like,
)
from ..text.prompt import DEFAULT_NEGATIVE_PROMPT, check_prompt, check_text, space_cjk
from ..text.script import Segment, as_segments, check_length, warn_of_unused_parts
from ..vae.tiling import OVERLAP
from ..weights.dit_keys import network_config
from ..weights.roles import window_seconds
from . import demo
from .parts import Parts

if TYPE_CHECKING:
    from PIL import Image

Progress = Callable[[str, int, int], None]  # stage, done, total
Size = tuple[int, int]  # width, height, in pixels
Waveform = tuple[Tensor, int]  # [2, samples], and samples per second
Picture = Union[str, Path, "Image.Image"]
Prompt = str | Sequence[tuple[float, str]] | Sequence[Segment]  # for the whole clip, or (seconds, prompt) of its parts

DEFAULT_SECONDS = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pass:
    """One network's work at a clip: it is made from noise, or a finished one gets super-resolution."""

    recipe: Recipe
    size: Size
    steps: int
    guidance: Guidance | None  # None: without a negative prompt
    window: int  # latent frames that are made in one piece
    overlap: int  # latent frames that neighbouring windows share
    anchor: bool = False  # each window sees the last picture that is given before it
    denoise: float = 1.0  # below 1: from the latents of an old clip, under so much less noise

    @property
    def name(self) -> str:
        return f"{self.recipe.role} network"


@dataclass(frozen=True)
class Keyframe:
    """A picture that the clip shows at a time."""

    index: int  # latent frame
    image: Image.Image  # RGB


@dataclass(frozen=True)
class Request:
    """One clip's ingredients."""

    segments: Sequence[Segment]  # prompts, each for a part of the clip
    negative: str | None  # None: not used
    keyframes: Sequence[Keyframe]
    audio: Waveform | None  # what drives the clip, and becomes its audio
    audio_length: int  # audio latents
    first: Pass
    upscaling: Pass | None
    seeds: Sequence[int]  # a clip for each

    @property
    def passes(self) -> list[Pass]:
        return [self.first] if self.upscaling is None else [self.first, self.upscaling]

    def facts(self, seed: int) -> dict[str, Any]:
        """How the clip of a seed is made, for its metadata."""
        width, height = self.first.size
        facts = {"prompt": "\n".join(segment.prompt for segment in self.segments), "seed": seed,
                 "model": self.first.recipe.role, "steps": self.first.steps, "width": width, "height": height,
                 "upscale": list(self.upscaling.size) if self.upscaling else None,
                 "image": any(keyframe.index == 0 for keyframe in self.keyframes),
                 "driven_by_sound": self.audio is not None}
        return facts if self.first.denoise == 1 else {**facts, "denoise": self.first.denoise}


def make_request(parts: Parts, prompt: Prompt, *, negative: str | None = None, image: Picture | None = None,
                 keyframes: Mapping[float | str, Picture] | None = None, loop: bool = False,
                 audio: str | Path | Waveform | None = None, seconds: float | None = None,
                 size: Size | None = None, seeds: Sequence[int] = (0,), steps: int | None = None,
                 mode: str | None = None, upscale: str | Size | None = None, sr_steps: int = SR_540P.steps,
                 guidance: Guidance | None = None, window: float | None = None, overlap: float | None = None,
                 anchor: bool = True, denoise: float = 1.0) -> Request:
    """Check and read the input of MagiHumanPipeline.generate, which says what each of them is.

    Raises InputError for what no clip can be made from, CheckpointError where a part is missing or is something else.
    """
    require_parts(parts.models, mode, upscale,
                  pictures=image is not None or (isinstance(keyframes, Mapping) and len(keyframes) > 0))
    recipe = RECIPES[parts.models.network(mode)]
    steps = recipe.steps if steps is None else steps
    for name, value in (("steps", steps), ("sr_steps", sr_steps)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1000:
            raise InputError(f"{name} is {shown(value)}, expected a whole number from 1 to 1000.")
    flow_sigmas(steps, denoise=denoise)
    if guidance is not None and not isinstance(guidance, Guidance):
        raise InputError(f"guidance is {shown(guidance)}, expected magihuman_core.Guidance.")
    for seed in seeds:
        check_seed(seed)
    if not isinstance(anchor, bool):
        raise InputError(f"anchor is {shown(anchor)}, expected True or False.")
    segments = as_segments(prompt)
    stills = [] if image is None else [Keyframe(0, read_image(image))]
    size = floor_size(*size) if size is not None else usual_size(parts.models, stills)
    scripted = sum(segment.seconds for segment in segments)
    usual = DEMO_SECONDS if parts.models.is_demo else DEFAULT_SECONDS
    length = audio_length((scripted if math.isfinite(scripted) else usual) if seconds is None else seconds)
    if seconds is not None:
        check_length(segments, seconds, "the clip is to have")
    driving = None if audio is None else read_audio(audio, seconds)
    if driving is not None:
        check_length(segments, driving[0].shape[1] / driving[1], "the recording has")
        length = covering_length(frames_of(driving[0].shape[1], driving[1]))
    stills += read_keyframes({} if keyframes is None else keyframes, loop, latent_frames(length), stills)
    upscaling = None
    if upscale is not None:
        large = upscaled_size(*size, upscale)
        if parts.models.is_demo and isinstance(upscale, str):  # whose own network makes it twice as large
            large = 2 * size[0], 2 * size[1]
        sr = choose_upscaler(parts.models, upscale, large)
        upscaling = Pass(sr, large, sr_steps, None, *windows_of(parts, sr, window, overlap))
    if recipe.guidance is not None:
        guidance = guidance or recipe.guidance
        negative = check_text(negative, "negative prompt") if negative else DEFAULT_NEGATIVE_PROMPT
    elif negative is not None or guidance is not None:
        log.warning("The %s network is used without guidance: the negative prompt is not read.", recipe.role)
        guidance = negative = None
    first = Pass(recipe, size, steps, guidance, *windows_of(parts, recipe, window, overlap), anchor, denoise)
    for still in stills:
        warn_of_cropping(still.image.size, size)
    request = Request(segments, negative, stills, driving, length, first, upscaling, seeds)
    check_parts(parts, request)
    windows = plan_windows(length, first.window, first.overlap).parts
    warn_of_unused_parts(segments, [window.start + window.frames / 2 for window in windows])
    say_tips(parts.models, request)
    return request


def usual_size(models: ModelFolder, stills: Sequence[Keyframe]) -> Size:
    """The size of a clip for which none was asked: the model's own, or with a first picture its area in that shape.

    The demo knows a few shapes: that which is nearest.
    """
    first = next((still.image for still in stills if still.index == 0), None)
    if first is None:
        return (DEMO_SIDE, DEMO_SIDE) if models.is_demo else (BASE.width, BASE.height)
    if models.is_demo:
        return min(DEMO_SIZES, key=lambda size: abs(math.log(size[0] * first.height / (size[1] * first.width))))
    return shape_like(*first.size, BASE.area)


def say_tips(models: ModelFolder, request: Request) -> None:
    """Say in the log what would make a better clip. Nothing of it is an error, and so it stands after all of these."""
    prompts = [segment.prompt for segment in request.segments]
    remarks = list(demo.remarks(models, prompts, picture=bool(request.keyframes), size=request.first.size,
                                large=None if request.upscaling is None else request.upscaling.size))
    if not models.is_demo:
        remarks = [f"Prompt: {remark}" for prompt in prompts for remark in check_prompt(prompt)]
    for remark in dict.fromkeys(remarks):
        log.log(TIP, "%s", remark)


def require_parts(models: ModelFolder, mode: str | None, upscale: str | Size | None, *, pictures: bool) -> None:
    """Raise MissingPartsError, which names all that are, unless a folder holds what a clip needs."""
    if mode is not None and not isinstance(mode, str):
        raise InputError(f"mode is {shown(mode)}, expected base or distilled.")
    network = mode if mode in ("base", "distilled") else "base" if "base" in models and "distilled" not in models else (
        "distilled")
    needed = {network: f"mode {mode}" if mode else "making a clip", "text_encoder": "reading the prompt",
              "audio_vae": "sound"}
    if isinstance(upscale, str) and upscale in UPSCALERS:
        needed[UPSCALERS[upscale].role] = f"upscaling to {upscale}"
    if pictures:
        needed["video_vae"] = "a reference picture (--image)"
    elif "turbo_vae" not in models:
        needed["video_vae" if "video_vae" in models else "turbo_vae"] = "decoding the picture"
    models.require_all(needed)


def windows_of(parts: Parts, recipe: Recipe, window: float | None, overlap: float | None) -> tuple[int, int]:
    """The window and the overlap of a network in latent frames. window, overlap: in seconds, as the user wants them.

    Raises InputError for an overlap that does not fit.
    """
    if window is None:
        window = window_seconds(recipe, parts.open(recipe.role).metadata)
    frames = window_frames(window)
    if overlap is None:
        return frames, max(1, min(WINDOW_OVERLAP, frames // 2))
    shared = shared_frames(overlap)
    if overlap >= window or not 1 <= shared < frames:
        raise InputError(f"overlap is {overlap:g} s for windows of {window:g} s, expected at least 0.16 s, and less "
                         "than a window. Choose longer windows (--window) or another overlap (--overlap).")
    return frames, shared


def read_keyframes(keyframes: Mapping[float | str, Picture], loop: bool, frames: int,
                   first: Sequence[Keyframe]) -> list[Keyframe]:
    """The pictures of some times, as latent frames of a clip that has so many.

    keyframes: by seconds, or "last"; loop: the picture of the start is that of the end as well; first: that picture,
    where it was given otherwise. Raises InputError for a time beyond the end, or too close to another.
    """
    if not isinstance(keyframes, Mapping):
        raise InputError(f"keyframes is {type(keyframes).__name__}, expected a table of pictures by their seconds.")
    found = {keyframe.index: keyframe.image for keyframe in first}
    for when, picture in keyframes.items():
        if when == "last":
            index = frames - 1
        elif isinstance(when, bool) or not isinstance(when, int | float) or not 0 <= when < math.inf:
            raise InputError(f'A keyframe is at {shown(when)}, expected seconds from 0 on, or "last".')
        else:
            index = latent_of_frame(round(when * FPS))
        if index >= frames:
            raise InputError(f"A keyframe is at {when:g} s, but the clip ends at {decoded_frames(frames) / FPS:.2f} s. "
                             "Choose an earlier time, or last.")
        if index in found:
            raise InputError(f"The keyframe at {when} is within 0.16 s of another picture. Leave one of them out.")
        found[index] = read_image(picture)
    if loop:
        if 0 not in found:
            raise InputError("loop needs a picture to begin and end with. Give one as image.")
        if frames == 1 or frames - 1 in found:
            raise InputError("loop makes the last frame the first one, but there is another picture for it. "
                             "Leave one of them out.")
        found[frames - 1] = found[0]
    known = {keyframe.index for keyframe in first}
    return [Keyframe(index, image) for index, image in found.items() if index not in known]


def read_image(image: Picture, what: str = "image") -> Image.Image:
    """A file, or an image in memory, as RGB and upright. what: it is, in a sentence. Raises InputError."""
    from PIL import Image

    if isinstance(image, str | Path):
        return load_image(image)
    if not isinstance(image, Image.Image):
        raise InputError(f"{what} is {type(image).__name__}, expected a file or an image of Pillow.")
    return to_rgb(image)


def read_audio(audio: str | Path | Waveform, seconds: float | None) -> Waveform:
    """A file, or (waveform [channels, samples], rate), as stereo; cut to seconds, or followed by silence up to these.

    Whole numbers are taken by their dtype's range; see waveform.as_audio. Raises InputError.
    """
    if isinstance(audio, (str, Path)):
        waveform, rate = load_audio(audio, seconds)
    else:
        try:
            waveform, rate = audio
        except (TypeError, ValueError):
            raise InputError(f"audio is {type(audio).__name__}, expected a file, or (waveform [channels, samples], "
                             "rate).") from None
        waveform, rate = as_audio(torch.as_tensor(waveform), rate, "The audio")
    if waveform.shape[1] * FPS < rate:
        raise InputError(f"The audio lasts {waveform.shape[1] / rate:.3f} s, less than one frame (0.04 s). "
                         "Give a longer recording.")
    if seconds is not None:
        length = round(seconds * rate)
        waveform = F.pad(waveform[:, :length], (0, max(0, length - waveform.shape[1])))
    return waveform, rate


def choose_upscaler(models: ModelFolder, upscale: str | Size, size: Size) -> Recipe:
    """The super-resolution network for a target: by its name, else by the area. Raises CheckpointError without it."""
    if isinstance(upscale, str):
        return RECIPES[models.require(UPSCALERS[upscale].role, f"upscaling to {upscale}")]
    best = upscaler_for(*size)
    other = SR_540P if best is SR_1080P else SR_1080P
    chosen = other if other.role in models and best.role not in models else best
    return RECIPES[models.require(chosen.role, "upscaling")]


def check_parts(parts: Parts, request: Request) -> None:
    """Raise InputError for options that no part can be run with, CheckpointError for files that are something else."""
    check_memory_options(parts)
    for lora in parts.loras:
        if not isinstance(lora, Sequence) or isinstance(lora, str) or len(lora) != 2:
            raise InputError(f"loras holds {shown(lora)}, expected (file, strength) of each.")
        check_strength(lora[1])
    # Reads headers only, and so finds what is not a network, and what no LoRA of it.
    first, *_ = [network_config(parts.open(pass_.recipe.role)) for pass_ in request.passes]
    for file, _ in parts.loras:
        check_lora(file, first)
    demo.check_same_model(parts.models, request.first.recipe.role)
    if request.upscaling is not None and any(
            len(space_cjk(segment.prompt).split()) < 2 for segment in request.segments):
        raise InputError("The prompt is too short for super-resolution, which needs two words at least. Write a longer "
                         "one.")


def check_memory_options(parts: Parts) -> None:
    """Raise InputError for options of memory that nothing can be run with."""
    if parts.tile is not None and (isinstance(parts.tile, bool) or not isinstance(parts.tile, int)
                                   or parts.tile <= OVERLAP):
        raise InputError(f"tile is {parts.tile}, expected more than {OVERLAP} latent pixels, which tiles overlap by.")
    if parts.dtype is not None:
        check_dtype(parts.dtype, parts.device)
    check_resident_blocks(parts.resident_blocks)
    check_stream_from(parts.stream_from)
    can_fuse(parts.fuse, parts.device)
