"""The stages of a clip, one part of the model each. A stage loads its part, uses it, and returns plain values; the
part is gone with the function's last line."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.quantize import kept_wide
from ..errors import CheckpointError, is_out_of_memory
from ..loading.dit import load_dit
from ..loading.text_encoder import config_from_shapes, load_text_encoder, stored_config
from ..loading.vae import load_audio_vae, load_turbo_vae, load_video_vae
from ..media.frames import Frames
from ..media.image import fit_image, frames_to_uint8
from ..media.waveform import OUTPUT_RATE, resample_recording, to_stereo
from ..model.dit import MagiHumanDiT
from ..runtime.devices import free_memory, release_memory
from ..runtime.lora import apply_lora
from ..runtime.memory import encoding_activations, estimate, weight_bytes
from ..runtime.parallel import SharedWindows, sequence_parallel
from ..runtime.plan import log_plan, plan_blocks, plan_decoding, smaller_tile, usable
from ..runtime.streaming import SPARE
from ..runtime.work import log_seconds
from ..sampling.frozen import JointLatent, keep_audio
from ..sampling.latents import pack_latents, unpack_latents
from ..sampling.noise import start_noise
from ..sampling.regenerate import STILL_FRAMES
from ..sampling.solvers import SOLVERS, flow_sigmas
from ..sampling.super_resolution import prepare_super_resolution
from ..sampling.windows import EachWindow, Texts, Window, WindowedDenoiser, plan_windows
from ..sizes import byte_size, decoded_frames
from ..text.script import Segment, segment_at
from ..vae.turbo import TurboVAE
from ..vae.video import VideoVAE
from ..weights.dit_keys import network_config, split_official
from ..weights.open import open_checkpoint
from ..weights.precision import may_quantize
from ..weights.text_encoder_keys import encoder_keys
from .crew import Crew
from .parts import Parts
from .request import Keyframe, Pass, Progress, Size, Waveform

CPU = torch.device("cpu")
WINDOW = 32  # frames turned into bytes at a time

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conditions:
    """What a network is told: the prompts' texts, each for a part of the clip, and the negative prompt's."""

    segments: Sequence[Segment]
    texts: Sequence[Tensor]  # [1, n, d] of each
    negative: Tensor | None

    def of_window(self, start: int, frames: int) -> Tensor:
        """The text of the segment in which the middle of a window lies. start, frames: latent frames."""
        return self.texts[segment_at(self.segments, start + frames / 2)]

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(text.shape[1] for text in (*self.texts, self.negative) if text is not None)


def encode_texts(parts: Parts, segments: Sequence[Segment], negative: str | None) -> Conditions:
    """The texts of all prompts."""
    checkpoint = encoder_keys(open_checkpoint(parts.open("text_encoder"), "text_encoder"))
    dtype = parts.weights_dtype(checkpoint, may_quantize)
    compute_dtype, free = parts.compute_dtype(dtype), free_memory(parts.device)
    plan = plan_blocks(config_from_shapes(checkpoint, stored_config(checkpoint)), free, dtype=dtype,
                       compute_dtype=compute_dtype, device=parts.device,
                       wide=kept_wide(checkpoint, dtype, may_quantize))
    log_plan(plan, free)
    encoder = parts.load(load_text_encoder, checkpoint, parts.models.get("tokenizer"), dtype=dtype,
                         compute_dtype=compute_dtype, resident_layers=plan.resident_blocks,
                         stream_from=parts.stream_from or "file")  # each layer comes in once: main memory gains nothing
    prompts = [segment.prompt for segment in segments]
    texts = encoder.encode_many(prompts if negative is None else [*prompts, negative])
    return Conditions(segments, texts[: len(prompts)], None if negative is None else texts[-1])


def encode_keyframes(parts: Parts, keyframes: Sequence[Keyframe], sizes: Sequence[Size]) -> dict[Size, list[Tensor]]:
    """The latent [1, C, 1, H, W] of each picture, cropped to each of these pixel sizes."""
    vae, device = _load_encoder(parts, STILL_FRAMES if any(keyframe.index for keyframe in keyframes) else 1, sizes)

    def encode(keyframe: Keyframe, size: Size) -> Tensor:
        still = fit_image(keyframe.image, *size).to(device)
        if keyframe.index:  # a latent frame of a moving picture is made of four frames
            still = still.expand(-1, -1, STILL_FRAMES, -1, -1)
        return vae.encode(still)[:, :, -1:]

    return {size: [encode(keyframe, size) for keyframe in keyframes] for size in sizes}


def encode_frames(parts: Parts, videos: Sequence[Frames]) -> list[Tensor]:
    """The latent [1, C, T, H, W] of each video, in main memory; its last frame is repeated to fill a latent frame.

    Frames are read and encoded a few at a time.
    """
    vae, device = _load_encoder(parts, max(map(len, videos)), [(frames.width, frames.height) for frames in videos])
    return [_encode_frames(vae, frames, device) for frames in videos]


def _load_encoder(parts: Parts, frames: int, sizes: Sequence[Size]) -> tuple[VideoVAE, torch.device]:
    """The video VAE and where it encodes so many frames of these sizes: on the device, or where it is too small, on
    the CPU."""
    vae, dtype = parts.load(load_video_vae, parts.open("video_vae"), dtype=torch.float32, device=CPU), torch.float32
    free = None if parts.device.type == "cpu" else free_memory(parts.device)
    if free is not None:
        frames = min(frames, 1 + 2 * vae.config.temporal_factor)  # more wait in main memory until their turn
        needed = weight_bytes(vae.config, dtype) + max(
            encoding_activations(vae.config, (1, 3, frames, height, width), dtype, parts.device.type)
            for width, height in sizes)
        if needed > usable(free):
            log.info("Encoding needs %s, of which %s are free on %s: it is done on the CPU.", byte_size(needed),
                     byte_size(free), parts.device)
            return vae, CPU
    return vae.to(parts.device), parts.device


def _encode_frames(vae: VideoVAE, frames: Frames, device: torch.device) -> Tensor:
    state: dict = {}
    latents: list[Tensor] = []
    waiting: list[Tensor] = []
    for number, frame in enumerate(frames):
        waiting.append(frame)
        if number == len(frames) - 1:
            waiting += [frame] * (-number % vae.config.temporal_factor)
        if len(waiting) == (vae.config.temporal_factor if latents else 1):
            pixels = torch.stack(waiting).to(device).float() / 127.5 - 1  # [f, h, w, 3]
            raw = vae.moments(pixels.permute(3, 0, 1, 2)[None], state)[0]
            latents.append(vae.statistics.normalize(raw).cpu())
            waiting = []
    return torch.cat(latents, 2)


def encode_audio(parts: Parts, audio: Waveform) -> Tensor:
    """The latent [1, a, A] of a waveform of any length."""
    vae = parts.load(load_audio_vae, parts.open("audio_vae"))
    waveform = resample_recording(*audio, vae.sample_rate)
    return vae.encode_long(waveform[None].to(parts.device))


def sample(parts: Parts, pass_: Pass, conditions: Conditions, latent: JointLatent,
           jobs: Sequence[tuple[int, tuple[Tensor, Tensor] | None]], progress: Progress) -> list[tuple[Tensor, Tensor]]:
    """Both latents of a clip for each job: a seed, and for super-resolution the latents of the clip it begins with.

    latent: what is kept, and where denoise is below 1 what is begun with. Super-resolution hears the base clip's audio,
    with some noise, and returns it as it was. Clips longer than a window stay in main memory, and windows of them are
    brought to the device. With a crew, all of its processes have to do this at once, and all have the same results.
    Raises CheckpointError where the network computes what is not finite.
    """
    recipe, length = pass_.recipe, latent.audio.shape[2]
    windows = plan_windows(length, pass_.window, pass_.overlap)
    home = parts.device if len(windows.parts) == 1 else torch.device("cpu")
    dit = load_network(parts, pass_, conditions, min(length, windows.parts[0].audio.stop))
    each: EachWindow = map
    if parts.crew is not None:
        alone, dit = dit, sequence_parallel(dit)
        each = SharedWindows(alone)
    total, results, done = pass_.steps * len(windows.parts) * len(jobs), [], 0

    def text_for(window: Window) -> Texts:
        negative = None if pass_.guidance is None else conditions.negative
        text = conditions.of_window(window.start, window.frames).to(parts.device)
        return text, None if negative is None else negative.to(parts.device)

    def on_window() -> None:
        nonlocal done
        done += 1
        progress(pass_.name, done, total)

    progress(pass_.name, 0, total)
    for seed, base in jobs:
        kept = latent
        video, audio = (noise.to(home) for noise in start_noise((latent.video.shape, latent.audio.shape), seed))
        sigmas = flow_sigmas(pass_.steps, denoise=pass_.denoise)
        if base is not None:
            base_video, base_audio = (stream.to(home) for stream in base)
            video, audio = prepare_super_resolution(
                base_video, base_audio, *latent.video.shape[3:], video_noise=video, audio_noise=audio,
                noise_level=recipe.noise_level, audio_noise_scale=recipe.audio_noise)
            kept = keep_audio(latent, audio)
        elif pass_.denoise < 1:
            video = torch.lerp(latent.video.to(home), video, float(sigmas[0]))
        x, shapes = pack_latents(video, audio)
        model = WindowedDenoiser(dit, shapes, windows, text_for, pass_.guidance, kept.frozen_video, kept.frozen_audio,
                                 device=parts.device, on_window=on_window, each=each, anchor=pass_.anchor)
        x = SOLVERS[recipe.solver](model, x, sigmas, {"seed": seed}, disable=True)
        if not bool(torch.isfinite(x).all()):
            raise CheckpointError(f"{parts.models[recipe.role]}: the network computed values that are not finite. "
                                  "Its weights are damaged, or the dtype is too narrow: try --dtype fp32.")
        video, audio = unpack_latents(x, shapes)
        results.append((video, audio if base is None else base[1]))
    return results


def decode_audio(parts: Parts, latent: Tensor) -> Tensor:
    """The waveform of an audio latent, fp32 [2, samples] at 44.1 kHz."""
    vae = parts.load(load_audio_vae, parts.open("audio_vae"))
    waveform = to_stereo(vae.decode(latent)[0].float().cpu())
    return resample_recording(waveform, vae.sample_rate, OUTPUT_RATE).clamp(-1, 1)


def decode_video(parts: Parts, latent: Tensor) -> Generator[Tensor, None, None]:
    """The frames of a video latent in pieces, uint8 [f, h, w, 3], decoded window by window as they are asked for.

    By the Turbo VAE where there is one, else by the slower Wan2.2 VAE; in tiles where whole frames do not fit. Where
    memory runs out nevertheless, it begins again once, with smaller ones.
    """
    vae = load_decoder(parts)
    height, width = (side * vae.config.spatial_factor for side in latent.shape[3:])
    options: dict[str, Any] = {"width": width, "height": height, "tokens": decoded_frames(latent.shape[2]),
                               "dtype": vae.dtype, "device": parts.device}
    free = free_for(parts)
    if parts.tile is None:
        before = None if free is None else free + weight_bytes(vae.config, vae.dtype)
        plan = plan_decoding(vae.config, before, **options)
    else:
        plan = estimate(vae.config, tile=parts.tile, **options)
    log_plan(plan, free, loaded=True)
    tile, done, smaller = plan.tile, 0, smaller_tile(plan.tile, width, height, vae.config.spatial_factor)
    while True:
        try:
            position = 0
            for frames in _decoded_bytes(parts, vae, latent, tile):
                position += len(frames)
                if position > done:
                    yield frames[max(0, len(frames) - (position - done)) :]
                    done = position
            return
        except (RuntimeError, MemoryError) as error:
            if smaller is None or not is_out_of_memory(error):
                raise
        # Outside of the handler: the error itself holds what was computed until it arose.
        log.warning("Memory ran out while the picture was decoded in %s: it is tried once more in tiles of %d x %d.",
                    "whole frames" if tile is None else f"tiles of {tile} x {tile}", smaller, smaller)
        release_memory(parts.device)
        tile, smaller = smaller, None


def _decoded_bytes(parts: Parts, vae: TurboVAE | VideoVAE, latent: Tensor, tile: int | None) -> Iterator[Tensor]:
    """uint8 frames in main memory. A function of its own: what is on the device goes with it where it fails."""
    if parts.crew is None or (tile is None and isinstance(vae, VideoVAE)):  # whose windows each need the one before
        for window in vae.decode_windows(latent.to(parts.device), tile=tile):
            yield from _bytes_of(window)
        return
    with parts.crew.calling(share_decoding, parts, latent.cpu(), tile), parts.crew.collecting():
        yield from _shared_bytes(parts.crew, vae, latent.to(parts.device), tile)


def share_decoding(parts: Parts, latent: Tensor, tile: int | None) -> None:
    """What the other processes of a crew do while one of them decodes: their windows, or their tiles."""
    assert parts.crew is not None  # noqa: S101
    vae = load_decoder(parts)
    with parts.crew.collecting():
        for _ in _shared_bytes(parts.crew, vae, latent.to(parts.device), tile):
            pass


def _shared_bytes(crew: Crew, vae: TurboVAE | VideoVAE, latent: Tensor, tile: int | None) -> Iterator[Tensor]:
    if isinstance(vae, TurboVAE):
        for frames in crew.each(lambda decode: _bytes_of(decode()), vae.windows(latent, tile=tile)):
            yield from frames
    else:
        for window in vae.decode_windows(latent, tile=tile, each=crew.each):
            if window.numel():  # only one of the crew has the frames
                yield from _bytes_of(window)


def _bytes_of(window: Tensor) -> Iterator[Tensor]:
    for part in window.split(WINDOW, dim=2):
        yield frames_to_uint8(part).cpu()


def load_decoder(parts: Parts) -> TurboVAE | VideoVAE:
    """The Turbo VAE where there is one, else the slower Wan2.2 VAE."""
    dtype = parts.vae_dtype()
    if "turbo_vae" in parts.models:
        return parts.load(load_turbo_vae, parts.models["turbo_vae"], dtype=dtype)
    return parts.load(load_video_vae, parts.open("video_vae"), dtype=dtype)


def free_for(parts: Parts) -> int | None:
    """Bytes that are free for this process on its device; None where nothing tells. A crew shares main memory."""
    free = free_memory(parts.device)
    return free // parts.crew.neighbours if free and parts.crew and parts.device.type == "cpu" else free


def load_network(parts: Parts, pass_: Pass, conditions: Conditions, tokens: int, reserve: int = 0) -> MagiHumanDiT:
    """Load a network, once the log has said what it will need.

    tokens: audio latents that it sees at once. reserve: bytes of what is free that other parts will need beside it.
    """
    checkpoint = parts.open(pass_.recipe.role)
    config = network_config(checkpoint)
    overrides = pass_.recipe.overrides(config.layers)
    tensors = split_official(checkpoint, config)
    dtype = parts.weights_dtype(tensors, may_quantize)
    loras = () if pass_.recipe.super_resolution else parts.loras
    clip: dict[str, Any] = {
        "width": pass_.size[0], "height": pass_.size[1], "tokens": tokens, "text_tokens": conditions.longest,
        "guided": pass_.guidance is not None, "dtype": dtype}
    options = {**clip, "device": parts.device, "compute_dtype": parts.compute_dtype(dtype),
               "wide": kept_wide(tensors, dtype, may_quantize)}
    free = free_for(parts)
    if free is not None:
        free -= reserve
        free -= sum(entry.nbytes for file, _ in loras for entry in open_checkpoint(file).entries.values())
    if parts.resident_blocks is None:
        plan = plan_blocks(replace(config, **overrides), free, **options)
    else:
        plan = estimate(replace(config, **overrides), resident_blocks=parts.resident_blocks, **options)
    log_plan(plan, free)
    log_seconds(replace(config, **overrides), device=parts.device, steps=pass_.steps, streamed=plan.streamed,
                **clip)
    source = parts.stream_from
    if source is None and parts.crew is not None and plan.streamed:  # each process would keep its own in main memory
        fits = parts.crew.neighbours * plan.streamed + SPARE < (free_memory("cpu") or 0)
        source = "memory" if fits and parts.device.type != "cpu" else "file"
    return parts.load(_load_changed, checkpoint, loras=loras, dtype=dtype, compute_dtype=options["compute_dtype"],
                      resident_blocks=plan.resident_blocks, stream_from=source, fuse=parts.fuse,
                      **overrides)


def _load_changed(checkpoint: Checkpoint, *, loras: Sequence[tuple[str | Path, float]], **options: Any) -> MagiHumanDiT:
    """A network with its LoRAs."""
    dit = load_dit(checkpoint, **options)
    for file, strength in loras:
        apply_lora(dit, file, strength)
    return dit
