"""From a prompt, a picture and a sound to a clip: all parts in their order, one in memory at a time.

    text encoder -> video VAE (reference picture) -> audio VAE (driving sound)
    -> network -> [super-resolution network] -> video decoder -> audio decoder
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.quantize import stored_dtype
from ..errors import CheckpointError, InputError
from ..loading.folder import NETWORKS, ModelFolder, find_models
from ..media.video_file import fit_image, frames_to_uint8
from ..media.waveform import OUTPUT_RATE, resample, to_stereo
from ..model.config import DiTConfig
from ..model.dit import MagiHumanDiT, load_dit
from ..model.sequence import pack_latents, unpack_latents
from ..recipes import SR_STEPS, STEPS, choose_device, role_overrides
from ..runtime.lora import apply_lora
from ..sampling.denoiser import Guidance, JointDenoiser
from ..sampling.noise import start_noise
from ..sampling.solvers import flow_sigmas, sample_renoise, sample_unipc
from ..sampling.super_resolution import prepare_super_resolution
from ..sizes import FPS, PIXELS_PER_LATENT, UPSCALED_SIZES, decoded_frames, latent_frames
from ..text.prompt import DEFAULT_NEGATIVE_PROMPT
from ..weights.dit_keys import network_config, split_official
from ..weights.open import open_checkpoint
from ..weights.precision import may_quantize
from ..weights.text_encoder_keys import encoder_keys
from .clip import Clip
from .request import Job, Progress, prepare_job

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

LARGE = 1_000_000_000  # weights from which on fp32 on a CPU would rarely fit


class MagiHumanPipeline:
    """Makes clips with the models of a folder.

    Each part is loaded when its turn comes and released after it, so that memory never holds two.
    """

    def __init__(self, models: ModelFolder, *, device: str | torch.device = "auto",
                 dtype: torch.dtype | None = None, resident_blocks: int | None = None, tile: int | None = None,
                 loras: Sequence[tuple[str | Path, float]] = ()) -> None:
        self.models = models
        self.device = choose_device(device)
        self.dtype = dtype
        self.resident_blocks = resident_blocks
        self.tile = tile
        self.loras = tuple(loras)
        self.notices: set[str] = set()

    @classmethod
    def from_folder(cls, path: str | Path, *, parts: Mapping[str, str | Path] | None = None,
                    **options: Any) -> MagiHumanPipeline:
        """Find the models of a folder (see model_folder.py), or the built-in ones of "demo".

        parts: a file or folder for a part by name, such as {"distilled": "networks/mine.safetensors"}, instead
        of what the folder holds. options:
        device: "auto" takes CUDA where there is one.
        dtype: of network and text encoder, see load_dit; None: bfloat16, or the 8 bits that a file has its weights
        in, but float32 for small models on a CPU.
        resident_blocks: how many of the network's blocks stay in memory, None: all (see streaming.py).
        tile: side of the squares the Turbo VAE decodes, in latent cells of 16 pixels; None: whole pictures.
        loras: (file, strength) of each LoRA for the base or distilled network.
        Raises InputError and CheckpointError.
        """
        return cls(find_models(path, parts), **options)

    @torch.inference_mode()
    def generate(
        self,
        prompt: str,
        *,
        negative: str | None = None,
        image: str | Path | Image.Image | None = None,
        audio: str | Path | tuple[Tensor, int] | None = None,
        seconds: float | None = None,
        width: int = 448,
        height: int = 256,
        seed: int = 0,
        steps: int | None = None,
        mode: str | None = None,
        upscale: str | tuple[int, int] | None = None,
        sr_steps: int = SR_STEPS,
        guidance: Guidance | None = None,
        progress: Progress | None = None,
    ) -> Clip:
        """Make one clip.

        image: the picture of the first frame, cropped to the clip's aspect.
        audio: a sound that drives the clip, a file or (waveform [channels, samples], rate). The clip's sound
        is this recording itself, at 44.1 kHz, and not what the audio VAE makes of it.
        seconds: length; default 4, or all of the sound (which is cut where seconds is less).
        width, height: of the base clip in pixels, floored to multiples of 32; the model's own are 448x256.
        seed: all noise comes from it, as in ComfyUI (see noise.py).
        mode: "distilled" (8 steps, no guidance) or "base" (32 steps, with guidance away from `negative`,
        default DEFAULT_NEGATIVE_PROMPT); None: what the folder has, distilled first.
        upscale: "540p", "1080p" or (width, height): a super-resolution pass of sr_steps.
        progress: called with (stage, done, total).
        Picture and sound are cut to the shorter of the two.
        Raises InputError and CheckpointError, before anything is computed where that can be known.
        """
        started = time.perf_counter()
        role = self.models.network(mode)
        steps = STEPS[role] if steps is None else steps
        _check_steps(steps, sr_steps)
        job = prepare_job(prompt, image, audio, seconds, (width, height), upscale, seed, progress)
        upscaler = self._upscaler(upscale, job.large)
        self._check_parts(job, filter(None, (role, upscaler)))
        if role != "base" and (negative is not None or guidance is not None):
            log.warning("The %s network is used without guidance: the negative prompt is not read.", role)

        self._encode_text(job, prompt, (negative or DEFAULT_NEGATIVE_PROMPT) if role == "base" else None)
        self._encode_picture(job)
        self._encode_sound(job)
        video, sound = self._make(job, role, steps, guidance)
        if upscaler:
            video = self._enlarge(job, upscaler, sr_steps, video, sound)
        waveform = self._waveform(job, sound)
        count = min(decoded_frames(video.shape[2]), waveform.shape[1] * FPS // OUTPUT_RATE)
        if count < 1:
            raise InputError("The sound is shorter than one frame. Give a longer one.")
        frames = self._decode_video(job, video, count)
        log.info("Made %d frames of %dx%d, %.2f s, in %.1f s.", count, frames.shape[2], frames.shape[1],
                 count / FPS, time.perf_counter() - started)
        facts = {"prompt": prompt, "seed": seed, "model": role, "steps": steps, "width": job.size[0],
                 "height": job.size[1], "upscale": list(job.large) if job.large else None,
                 "image": job.picture is not None, "driven_by_sound": job.sound is not None}
        return Clip(frames, waveform[:, : count * OUTPUT_RATE // FPS], metadata=facts)

    # Checks

    def _upscaler(self, upscale, large: tuple[int, int] | None) -> str | None:
        """The super-resolution network for a target, by its name or, for other sizes, by its area."""
        if large is None:
            return None
        if isinstance(upscale, str):
            return self.models.require(f"sr_{upscale}", f"upscaling to {upscale}")
        middle = (UPSCALED_SIZES["540p"][0] * UPSCALED_SIZES["1080p"][0]) * (512 * 1088)
        first = "sr_1080p" if (large[0] * large[1]) ** 2 > middle else "sr_540p"
        other = {"sr_1080p": "sr_540p", "sr_540p": "sr_1080p"}[first]
        best = other if other in self.models and first not in self.models else first
        return self.models.require(best, "upscaling")

    def _check_parts(self, job: Job, networks: Iterable[str]) -> None:
        for role in networks:
            self._config(role)  # reads the header only, and so finds what is no network before anything is computed
        self.models.require("text_encoder", "reading the prompt")
        self.models.require("audio_vae", "sound")
        if job.picture is not None:
            self.models.require("video_vae", "a reference picture (--image)")
        if "turbo_vae" not in self.models:
            self.models.require("video_vae", "decoding the picture")

    # Stages

    def _encode_text(self, job: Job, prompt: str, negative: str | None) -> None:
        from ..text.encoder import load_text_encoder

        checkpoint = encoder_keys(open_checkpoint(self._open("text_encoder"), "text_encoder"))
        with self._stage("text encoder") as load:
            encoder = load(load_text_encoder, checkpoint, self.models.get("tokenizer"),
                           dtype=self._dtype(checkpoint, may_quantize))
            job.text = encoder.encode(prompt)
            job.negative = None if negative is None else encoder.encode(negative)
            del encoder

    def _encode_picture(self, job: Job) -> None:
        if job.picture is None:
            return
        from ..vae.video import load_video_vae

        with self._stage("reference picture") as load:
            vae = load(load_video_vae, self._open("video_vae"), dtype=torch.float32)
            for size in filter(None, (job.size, job.large)):
                job.picture_latents[size] = vae.encode(fit_image(job.picture, *size).to(self.device))
            del vae

    def _encode_sound(self, job: Job) -> None:
        if job.sound is None:
            return
        from ..vae.audio import load_audio_vae

        with self._stage("driving sound") as load:
            vae = load(load_audio_vae, self._open("audio_vae"))
            waveform, rate = job.sound
            waveform = resample(waveform, rate, vae.sample_rate)
            job.sound_latent = vae.encode_long(waveform[None].to(self.device))
            del vae

    def _make(self, job: Job, role: str, steps: int, guidance: Guidance | None) -> tuple[Tensor, Tensor]:
        """Both latents of the base clip."""
        config = self._config(role)
        tokens = job.sound_latent.shape[2] if job.tokens is None else job.tokens
        width, height = (side // PIXELS_PER_LATENT for side in job.size)
        shape = (1, config.video_channels, latent_frames(tokens), height, width)
        noise = start_noise((shape, (1, config.audio_channels, tokens)), job.seed)
        x, shapes = pack_latents(*(stream.to(self.device) for stream in noise))
        with self._stage(f"{role} network, {steps} steps") as load:
            dit = self._network(load, role, job, job.size, tokens)
            for file, strength in self.loras:
                apply_lora(dit, file, strength)
            model = JointDenoiser(dit, shapes, job.text, job.negative, guidance,
                                  frozen_video=self._frozen_picture(job, job.size, shape),
                                  frozen_audio=_held(job.sound_latent))
            options = {"callback": _reporter(job, f"{role} network", steps), "disable": True}
            if role == "distilled":
                x = sample_renoise(model, x, flow_sigmas(steps), {"seed": job.seed}, **options)
            else:
                x = sample_unipc(model, x, flow_sigmas(steps), **options)
            del dit, model
        video, audio = unpack_latents(x, shapes)
        return self._finite(video, role), self._finite(audio, role)

    def _enlarge(self, job: Job, role: str, steps: int, video: Tensor, audio: Tensor) -> Tensor:
        """The video latent at the large size; the sound is only its context."""
        width, height = (side // PIXELS_PER_LATENT for side in job.large)
        shape = (*video.shape[:3], height, width)
        video_noise, audio_noise = (n.to(self.device) for n in start_noise((shape, audio.shape), job.seed))
        video, context = prepare_super_resolution(video, audio, height, width, video_noise=video_noise,
                                                  audio_noise=audio_noise)
        x, shapes = pack_latents(video, context)
        with self._stage(f"{role} network, {steps} steps") as load:
            dit = self._network(load, role, job, job.large, audio.shape[2])
            model = JointDenoiser(dit, shapes, job.text,
                                  frozen_video=self._frozen_picture(job, job.large, shape),
                                  frozen_audio=_held(context))
            report = _reporter(job, f"{role} network", steps)
            x = sample_unipc(model, x, flow_sigmas(steps), callback=report, disable=True)
            del dit, model
        return self._finite(unpack_latents(x, shapes)[0], role)

    def _waveform(self, job: Job, latent: Tensor) -> Tensor:
        """The clip's sound, fp32 [2, samples] at 44.1 kHz: the user's own where one was given."""
        if job.sound is not None:
            waveform, rate = job.sound
            return resample(waveform, rate, OUTPUT_RATE)
        from ..vae.audio import load_audio_vae

        with self._stage("sound decoder") as load:
            vae = load(load_audio_vae, self._open("audio_vae"))
            waveform = to_stereo(vae.decode(latent)[0].float().cpu())
            return resample(waveform, vae.sample_rate, OUTPUT_RATE).clamp(-1, 1)

    def _decode_video(self, job: Job, latent: Tensor, count: int) -> Tensor:
        """The first `count` frames, uint8 [F, h, w, 3], decoded window by window."""
        with self._stage("picture decoder") as load:
            frames = None
            done = 0
            for window in self._windows(load, latent):
                part = frames_to_uint8(window)[: count - done].cpu()
                if frames is None:
                    frames = torch.empty((count, *part.shape[1:]), dtype=torch.uint8)
                frames[done : done + len(part)] = part
                done += len(part)
                job.progress("picture decoder", done, count)
                if done == count:
                    break
        return frames

    def _windows(self, load: Callable[..., Any], latent: Tensor) -> Iterator[Tensor]:
        """Decoded frames, from the Turbo VAE where there is one, else from the slower Wan2.2 VAE."""
        from ..runtime.memory import log_estimate

        dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        options: dict[str, Any] = {}
        if "turbo_vae" in self.models:
            from ..vae.turbo import load_turbo_vae

            vae = load(load_turbo_vae, self.models["turbo_vae"], dtype=dtype)
            options["tile"] = self.tile
        else:
            from ..vae.video import load_video_vae

            vae = load(load_video_vae, self._open("video_vae"), dtype=dtype)
        frames, height, width = latent.shape[2:]
        log_estimate(vae.config, device=self.device, loaded=True, width=width * PIXELS_PER_LATENT,
                     height=height * PIXELS_PER_LATENT, tokens=4 * frames - 3, dtype=dtype, **options)
        return vae.decode_windows(latent, **options)

    # Helpers of the stages

    def _open(self, part: str) -> Checkpoint:
        checkpoint = open_checkpoint(self.models[part], "network" if part in NETWORKS else None)
        notice = checkpoint.metadata.get("notice")  # such as that the weights are random
        if notice and notice not in self.notices:
            self.notices.add(notice)
            log.warning("%s", notice)
        return checkpoint

    def _config(self, role: str) -> DiTConfig:
        return network_config(self._open(role))

    def _network(self, load: Callable[..., Any], role: str, job: Job, size: tuple[int, int],
                 tokens: int) -> MagiHumanDiT:
        """Load a network, once the log has said what it will need for pictures of this size."""
        from ..runtime.memory import log_estimate

        checkpoint = self._open(role)
        config = network_config(checkpoint)
        overrides = role_overrides(role, config.layers)
        dtype = self._dtype(split_official(checkpoint, config), may_quantize)
        options = {"dtype": dtype, "resident_blocks": self.resident_blocks}
        texts = [text for text in (job.text, job.negative if role == "base" else None) if text is not None]
        log_estimate(replace(config, **overrides), device=self.device, width=size[0], height=size[1], tokens=tokens,
                 text_tokens=max(text.shape[1] for text in texts), guided=len(texts) > 1, **options)
        return load(load_dit, checkpoint, **options, **overrides)

    def _finite(self, latent: Tensor, role: str) -> Tensor:
        if not bool(torch.isfinite(latent).all()):
            raise CheckpointError(f"{self.models[role]}: the network computed values that are not finite. "
                                  "Its weights are damaged, or the dtype is too narrow: try --dtype fp32.")
        return latent

    def _dtype(self, tensors: Checkpoint, quantized: Callable[[str], bool]) -> torch.dtype:
        """Of a part's weights. quantized: which of its keys may be in 8 bits."""
        if self.dtype is not None:
            return self.dtype
        if self.device.type == "cpu" and sum(entry.numel for entry in tensors.entries.values()) < LARGE:
            return torch.float32
        return stored_dtype(tensors, quantized) or torch.bfloat16

    def _frozen_picture(self, job: Job, size: tuple[int, int], shape) -> tuple[Tensor, Tensor] | None:
        """The picture as latent frame 0, held; mask 0 = keep."""
        if job.picture is None:
            return None
        latent = job.picture_latents[size]
        if latent.shape[1] != shape[1]:
            raise CheckpointError(f"{self.models['video_vae']}: encodes to {latent.shape[1]} channels, the "
                                  f"network takes {shape[1]}. Use the VAE that belongs to this network.")
        values = torch.zeros(tuple(shape), device=self.device)
        values[:, :, :1] = latent
        mask = torch.ones((1, 1, shape[2], 1, 1), device=self.device)
        mask[:, :, 0] = 0
        return values, mask

    @contextmanager
    def _stage(self, name: str) -> Iterator[Callable[..., Any]]:
        """Time a stage, and give its memory back. Yields load(function, *source, **options)."""
        started = time.perf_counter()
        loading = 0.0

        def load(function: Callable[..., Any], *source: Any, **options: Any) -> Any:
            nonlocal loading
            part = function(*source, device=self.device, **options)
            loading = time.perf_counter() - started
            return part

        log.info("%s ...", name)
        yield load
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
        log.info("%s: %.1f s, %.1f s of it loading", name, time.perf_counter() - started, loading)


def _check_steps(steps: int, sr_steps: int) -> None:
    for name, value in (("steps", steps), ("sr_steps", sr_steps)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1000:
            raise InputError(f"{name} is {value!r}, expected a whole number from 1 to 1000.")


def _reporter(job: Job, stage: str, steps: int) -> Callable[[dict[str, Any]], None]:
    """A solver's callback."""
    job.progress(stage, 0, steps)
    return lambda state: job.progress(stage, state["i"] + 1, steps)


def _held(audio: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Sound that stays as it is."""
    return None if audio is None else (audio, torch.zeros(1, 1, 1, device=audio.device))
