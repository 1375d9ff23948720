"""From a prompt, an image and a voice to a clip: all parts in their order, one in memory at a time.

    text encoder -> video VAE (reference image) -> audio VAE (driving audio)
    -> network -> [super-resolution network] -> audio decoder -> video decoder
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..errors import InputError
from ..loading.folder import ModelFolder, find_models
from ..media.waveform import OUTPUT_RATE, resample
from ..recipes import BASE, SR_540P, Guidance
from ..sizes import FPS, decoded_frames
from . import stages
from .clip import Clip
from .parts import Parts, choose_device
from .request import Pass, Progress, Request, Size, make_request

if TYPE_CHECKING:
    from PIL import Image

P = ParamSpec("P")
Result = TypeVar("Result")
log = logging.getLogger(__name__)


class MagiHumanPipeline:
    """Makes clips with the models of a folder.

    Each part is loaded when it is needed and released after it, so that memory never holds two.
    """

    def __init__(self, models: ModelFolder, *, device: str | torch.device = "auto", **options: Any) -> None:
        """options: as for from_folder."""
        self.parts = Parts(models, choose_device(device), **options)

    @classmethod
    def from_folder(cls, path: str | Path, *, parts: Mapping[str, str | Path] | None = None,
                    **options: Any) -> MagiHumanPipeline:
        """Find the models of a folder (see loading/folder.py), or the built-in ones of "demo".

        parts: a file or folder for a part by name, such as {"distilled": "networks/mine.safetensors"}, instead
        of what the folder holds. options:
        device: "auto" takes CUDA where there is one.
        dtype: of network and text encoder, see load_dit; None: bfloat16, or the 8 bits that a file has its weights
        in, but float32 for small models on a CPU.
        resident_blocks: how many of the network's blocks stay in memory, None: all (see runtime/streaming.py).
        tile: side of the squares the Turbo VAE decodes, in latent pixels (16 pixels each); None: whole frames.
        loras: (file, strength) of each LoRA for the base or distilled network. Raises InputError and CheckpointError.
        """
        return cls(find_models(path, parts), **options)

    @torch.inference_mode()
    def generate(self, prompt: str, *, negative: str | None = None, image: str | Path | Image.Image | None = None,
                 audio: str | Path | tuple[Tensor, int] | None = None, seconds: float | None = None,
                 width: int = BASE.width, height: int = BASE.height, seed: int = 0, steps: int | None = None,
                 mode: str | None = None, upscale: str | Size | None = None, sr_steps: int = SR_540P.steps,
                 guidance: Guidance | None = None, progress: Progress | None = None) -> Clip:
        """Make one clip.

        image: the first frame, cropped to the clip's aspect.
        audio: what drives the clip, a file or (waveform [channels, samples], rate). The clip's audio is this
        recording itself, at 44.1 kHz, and not what the audio VAE makes of it.
        seconds: length; default 4, or all of the audio (which is cut where seconds is less).
        width, height: of the base clip in pixels, floored to multiples of 32; default: the model's own.
        seed: all noise comes from it, as in ComfyUI (see sampling/noise.py).
        mode: "distilled" (few steps, no guidance) or "base" (with guidance away from `negative`, default
        DEFAULT_NEGATIVE_PROMPT); None: what the folder has, distilled first. steps: default: the mode's (recipes.py).
        upscale: "540p", "1080p" or (width, height): a super-resolution pass of sr_steps.
        progress: called with (stage, done, total).
        Video and audio are cut to the shorter of the two.
        Raises InputError and CheckpointError, before anything is computed where that can be known.
        """
        started = time.perf_counter()
        progress = progress or (lambda stage, done, total: None)
        request = make_request(
            self.parts, prompt, negative=negative, image=image, audio=audio, seconds=seconds, size=(width, height),
            seed=seed, steps=steps, mode=mode, upscale=upscale, sr_steps=sr_steps, guidance=guidance)
        conditions = self._encode(request)
        latents = self._sample(request.first, conditions, seed, None, progress)
        if request.upscaling is not None:
            latents = self._sample(request.upscaling, conditions, seed, latents, progress)
        return self._decode(request, *latents, progress, started)

    def _encode(self, request: Request) -> stages.Conditions:
        """Text, image and audio as the networks take them."""
        text, negative = self._stage("text encoder", stages.encode_text, request.prompt, request.negative)
        images: dict[Size, Tensor] = {}
        if request.image is not None:
            images = self._stage("reference picture", stages.encode_image, request.image,
                                 [pass_.size for pass_ in request.passes])
        audio, length = None, request.audio_length
        if request.audio is not None:
            audio = self._stage("driving sound", stages.encode_audio, request.audio)
            length = audio.shape[2]
        return stages.Conditions(text, negative, images, audio, length)

    def _sample(self, pass_: Pass, conditions: stages.Conditions, seed: int, base: tuple[Tensor, Tensor] | None,
                progress: Progress) -> tuple[Tensor, Tensor]:
        return self._stage(f"{pass_.name}, {pass_.steps} steps", stages.sample, pass_, conditions, seed, base, progress)

    def _decode(self, request: Request, video: Tensor, audio: Tensor, progress: Progress, started: float) -> Clip:
        """Frames and waveform of equal length; the waveform is the user's own where one was given."""
        if request.audio is not None:
            waveform = resample(*request.audio, OUTPUT_RATE)
        else:
            waveform = self._stage("sound decoder", stages.decode_audio, audio)
        count = min(decoded_frames(video.shape[2]), waveform.shape[1] * FPS // OUTPUT_RATE)
        if count < 1:
            raise InputError("The sound is shorter than one frame. Give a longer one.")
        frames = self._stage("picture decoder", stages.decode_video, video, count, progress)
        log.info("Made %d frames of %dx%d, %.2f s, in %.1f s.", count, frames.shape[2], frames.shape[1],
                 count / FPS, time.perf_counter() - started)
        return Clip(frames, waveform[:, : count * OUTPUT_RATE // FPS], metadata=request.facts)

    def _stage(self, name: str, stage: Callable[Concatenate[Parts, P], Result], *args: P.args,
               **kwargs: P.kwargs) -> Result:
        """Run a stage: its time in the log, and its memory given back."""
        started = time.perf_counter()
        log.info("%s ...", name)
        result = stage(self.parts, *args, **kwargs)
        if self.parts.device.type == "cuda":
            torch.cuda.synchronize(self.parts.device)
            torch.cuda.empty_cache()
        log.info("%s: %.1f s", name, time.perf_counter() - started)
        return result
