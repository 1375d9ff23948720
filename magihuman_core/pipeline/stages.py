"""The stages of a clip, one part of the model each. A stage loads its part, uses it, and returns plain values; the
part is gone with the function's last line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..loading.dit import load_dit
from ..loading.text_encoder import load_text_encoder
from ..loading.vae import load_audio_vae, load_turbo_vae, load_video_vae
from ..media.image import fit_image, frames_to_uint8
from ..media.waveform import OUTPUT_RATE, resample, to_stereo
from ..model.dit import MagiHumanDiT
from ..runtime.lora import apply_lora
from ..runtime.memory import log_estimate
from ..runtime.work import log_seconds
from ..sampling.denoiser import JointDenoiser
from ..sampling.frozen import empty_latent, keep_audio, keep_image
from ..sampling.latents import pack_latents, unpack_latents
from ..sampling.noise import start_noise
from ..sampling.solvers import SOLVERS, flow_sigmas
from ..sampling.super_resolution import prepare_super_resolution
from ..sizes import decoded_frames
from ..vae.turbo import TurboVAE
from ..vae.video import VideoVAE
from ..weights.dit_keys import network_config, split_official
from ..weights.open import open_checkpoint
from ..weights.precision import may_quantize
from ..weights.text_encoder_keys import encoder_keys
from .parts import Parts
from .request import Pass, Progress, Size, Waveform

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Conditions:
    """What a network is given besides noise, encoded."""

    text: Tensor  # [1, n, d]
    negative: Tensor | None
    images: Mapping[Size, Tensor]  # the reference image's latent at each size, or nothing
    audio: Tensor | None  # latent of the driving audio
    audio_length: int


def encode_text(parts: Parts, prompt: str, negative: str | None) -> tuple[Tensor, Tensor | None]:
    """[1, n, d] of the prompt, and of the negative prompt where there is one."""
    checkpoint = encoder_keys(open_checkpoint(parts.open("text_encoder"), "text_encoder"))
    encoder = parts.load(load_text_encoder, checkpoint, parts.models.get("tokenizer"),
                         dtype=parts.weights_dtype(checkpoint, may_quantize))
    return encoder.encode(prompt), None if negative is None else encoder.encode(negative)


def encode_image(parts: Parts, image: Image.Image, sizes: list[Size]) -> dict[Size, Tensor]:
    """The latent [1, C, 1, H, W] of an image, cropped to each of these pixel sizes."""
    vae = parts.load(load_video_vae, parts.open("video_vae"), dtype=torch.float32)
    return {size: vae.encode(fit_image(image, *size).to(parts.device)) for size in sizes}


def encode_audio(parts: Parts, audio: Waveform) -> Tensor:
    """The latent [1, a, A] of a waveform of any length."""
    vae = parts.load(load_audio_vae, parts.open("audio_vae"))
    waveform = resample(*audio, vae.sample_rate)
    return vae.encode_long(waveform[None].to(parts.device))


def sample(parts: Parts, pass_: Pass, conditions: Conditions, seed: int, base: tuple[Tensor, Tensor] | None,
           progress: Progress) -> tuple[Tensor, Tensor]:
    """Both latents of a clip: from noise, or by super-resolution from the latents of a finished clip, the base.

    Super-resolution hears the base's audio, with some noise, and returns it as it was.
    Raises CheckpointError for parts that do not fit each other, and where the network computes what is not finite.
    """
    recipe = pass_.recipe
    config = network_config(parts.open(recipe.role))
    latent = empty_latent(*pass_.size, conditions.audio_length, (config.video_channels, config.audio_channels),
                          parts.device)
    video, audio = (noise.to(parts.device) for noise in start_noise((latent.video.shape, latent.audio.shape), seed))
    if base is not None:
        video, audio = prepare_super_resolution(*base, *latent.video.shape[3:], video_noise=video, audio_noise=audio,
                                                noise_level=recipe.noise_level, audio_noise_scale=recipe.audio_noise)
        latent = keep_audio(latent, audio)
    elif conditions.audio is not None:
        latent = keep_audio(latent, conditions.audio)
    if conditions.images:
        image = conditions.images[pass_.size]
        if image.shape[1] != config.video_channels:
            raise CheckpointError(f"{parts.models['video_vae']}: encodes to {image.shape[1]} channels, the network "
                                  f"takes {config.video_channels}. Use the VAE that belongs to this network.")
        latent = keep_image(latent, image)

    negative = None if pass_.guidance is None else conditions.negative
    x, shapes = pack_latents(video, audio)
    dit = _load_network(parts, pass_, conditions)
    model = JointDenoiser(dit, shapes, conditions.text, negative, pass_.guidance, latent.frozen_video,
                          latent.frozen_audio)
    progress(pass_.name, 0, pass_.steps)
    x = SOLVERS[recipe.solver](model, x, flow_sigmas(pass_.steps), {"seed": seed}, disable=True,
                               callback=lambda state: progress(pass_.name, state["i"] + 1, pass_.steps))
    if not bool(torch.isfinite(x).all()):
        raise CheckpointError(f"{parts.models[recipe.role]}: the network computed values that are not finite. "
                              "Its weights are damaged, or the dtype is too narrow: try --dtype fp32.")
    video, audio = unpack_latents(x, shapes)
    return video, audio if base is None else base[1]


def decode_audio(parts: Parts, latent: Tensor) -> Tensor:
    """The waveform of an audio latent, fp32 [2, samples] at 44.1 kHz."""
    vae = parts.load(load_audio_vae, parts.open("audio_vae"))
    waveform = to_stereo(vae.decode(latent)[0].float().cpu())
    return resample(waveform, vae.sample_rate, OUTPUT_RATE).clamp(-1, 1)


def decode_video(parts: Parts, latent: Tensor, count: int, progress: Progress) -> Tensor:
    """The first `count` frames of a video latent, uint8 [F, h, w, 3], decoded window by window.

    By the Turbo VAE where there is one, else by the slower Wan2.2 VAE.
    """
    dtype = torch.float32 if parts.device.type == "cpu" else torch.bfloat16
    options: dict[str, Any] = {}
    vae: TurboVAE | VideoVAE
    if "turbo_vae" in parts.models:
        vae = parts.load(load_turbo_vae, parts.models["turbo_vae"], dtype=dtype)
        options["tile"] = parts.tile
    else:
        vae = parts.load(load_video_vae, parts.open("video_vae"), dtype=dtype)
    height, width = (side * vae.config.spatial_factor for side in latent.shape[3:])
    log_estimate(vae.config, device=parts.device, loaded=True, width=width, height=height,
                 tokens=decoded_frames(latent.shape[2]), dtype=dtype, **options)
    frames, done = torch.empty((count, height, width, 3), dtype=torch.uint8), 0
    for window in vae.decode_windows(latent, **options):
        part = frames_to_uint8(window)[: count - done].cpu()
        frames[done : done + len(part)] = part
        done += len(part)
        progress("picture decoder", done, count)
        if done == count:
            break
    return frames


def _load_network(parts: Parts, pass_: Pass, conditions: Conditions) -> MagiHumanDiT:
    """Load a network, once the log has said what it will need for a clip of this size."""
    checkpoint = parts.open(pass_.recipe.role)
    config = network_config(checkpoint)
    overrides = pass_.recipe.overrides(config.layers)
    dtype = parts.weights_dtype(split_official(checkpoint, config), may_quantize)
    guided = pass_.guidance is not None
    texts = [conditions.text, conditions.negative if guided else None]
    clip: dict[str, Any] = {
        "width": pass_.size[0], "height": pass_.size[1], "tokens": conditions.audio_length,
        "text_tokens": max(text.shape[1] for text in texts if text is not None), "guided": guided, "dtype": dtype,
        "resident_blocks": parts.resident_blocks}
    log_estimate(replace(config, **overrides), device=parts.device, **clip)
    log_seconds(replace(config, **overrides), device=parts.device, steps=pass_.steps, **clip)
    dit = parts.load(load_dit, checkpoint, dtype=dtype, resident_blocks=parts.resident_blocks, **overrides)
    if not pass_.recipe.super_resolution:
        for file, strength in parts.loras:
            apply_lora(dit, file, strength)
    return dit
