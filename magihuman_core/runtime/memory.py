"""How much memory a part of the model needs, known before anything is loaded.

    bytes of weights, counted on the meta device  +  peak of a dry run on tensors without content

A dry run (see dry_run.py) goes through the part's own code. Of the network one block of each kind is run, of
windows and tiles the first few.

Not counted: what Python and PyTorch themselves take (on CUDA about half a GB), scratch memory of CUDA's
kernels, and the caches and fragments of memory allocators.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from math import prod

import torch

from ..errors import InputError
from ..model.config import PATCH, DiTConfig
from ..model.dit import CPU_PIECE, PIECE, MagiHumanDiT
from ..recipes import BASE
from ..sizes import FPS, PIXELS_PER_LATENT, PIXELS_PER_TOKEN, TEXT_TOKENS, audio_length, latent_frames
from ..text.config import TextEncoderConfig
from ..vae.audio import LONG_WINDOW_SECONDS, SAMPLE_RATE, TILE, AudioVAEConfig
from ..vae.tiling import OVERLAP
from ..vae.turbo import TurboVAEConfig
from ..vae.video import VideoVAEConfig
from .build import Config, on_meta, one_of_each_kind
from .dry_run import dry_run
from .streaming import choose_streamed, free_memory, streamed_sizes

WINDOWS = 3  # of a decoder: with the third, memory no longer grows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Estimate:
    """What one part needs on the device it computes on, in bytes."""

    part: str
    clip: str  # what it was estimated for, in words
    weights: int  # resident, with the buffers where blocks are streamed
    activations: int  # at their peak
    streamed: int = 0  # brought in at each pass
    advice: str = ""  # what to lower first

    @property
    def total(self) -> int:
        return self.weights + self.activations

    def __str__(self) -> str:
        through = f", {size(self.streamed)} more come in at each step" if self.streamed else ""
        advice = f" To need less: {self.advice}." if self.advice else ""
        return (f"{self.part}, {self.clip}: {size(self.total)}, of which {size(self.weights)} weights and "
                f"{size(self.activations)} activations{through}.{advice}")


def size(count: int) -> str:
    """Bytes for people: 31.2 GB, 640 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(count / 1e6, 0.1):.{0 if count >= 1e7 else 1}f} MB"


def estimate(config: Config, *, width: int = BASE.width, height: int = BASE.height, seconds: float = 4,
             dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cuda",
             resident_blocks: int | None = None, guided: bool = False, text_tokens: int = TEXT_TOKENS,
             tile: int | None = None, tokens: int | None = None) -> Estimate:
    """The memory that a part of the model needs for a clip.

    config: of a network, a Turbo VAE, video VAE or audio VAE (for decoding) or a text encoder. width, height: pixels;
    tokens: audio latents, instead of seconds. dtype: of the weights (and of computing); device: "cpu" or another, for
    which work is cut into larger pieces. resident_blocks: as for load_dit; guided: with a negative prompt; text_tokens:
    of each of them. tile: as for the Turbo VAE's decode. Raises InputError for sizes that no clip can have.
    """
    tokens = audio_length(seconds) if tokens is None else tokens
    if min(width, height) < PIXELS_PER_TOKEN or tokens < 1 or text_tokens < 1:
        raise InputError(f"There is no clip of {width}x{height} pixels, {tokens} audio and {text_tokens} text tokens.")
    latent = latent_frames(tokens), height // PIXELS_PER_TOKEN * PATCH, width // PIXELS_PER_TOKEN * PATCH
    device = torch.device(device).type
    if isinstance(config, DiTConfig):
        dit = on_meta(config, dtype)
        weights, streamed = _resident(dit, resident_blocks)
        activations = network_activations(config, latent, tokens, text_tokens, dtype, device, guided)
        advice = _network_advice(dit, dtype, resident_blocks, weights, activations)
        return Estimate("network", clip_in_words(latent, tokens, text_tokens), weights, activations, streamed, advice)
    weights, length = _weights(config, dtype), f"{(tokens - 1) / FPS:.3g} s"
    if isinstance(config, TextEncoderConfig):
        activations = _text(config, text_tokens, dtype, device)
        advice = "a file in 8 bits, or more main memory"
        return Estimate("text encoder", f"{text_tokens} tokens", weights, activations, advice=advice)
    if isinstance(config, AudioVAEConfig):
        activations = _audio(config, tokens, dtype, device)
        return Estimate("audio VAE", length, weights, activations, advice="a shorter clip")
    activations = _video(config, latent, dtype, device, tile)
    part, advice = "video VAE", "the Turbo VAE, or a smaller picture"
    if isinstance(config, TurboVAEConfig):
        part, short = "Turbo VAE", min(latent[1:])
        advice = f"tiles of {short // 2} latent pixels, or a smaller picture" if short // 2 > OVERLAP else ""
    return Estimate(part, f"{width}x{height}, {length}", weights, activations, advice=advice)


def available(device: str | torch.device) -> int | None:
    """Bytes that are free on a device; None where the system does not tell."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory() if device.type == "cpu" else None


def log_estimate(config: Config, *, device: str | torch.device, loaded: bool = False, **options) -> None:
    """Log what `estimate` says of a part, and a warning where the device has less than that free.

    loaded: its weights are there already. options: as for estimate. Does nothing where nobody reads the log.
    """
    if not log.isEnabledFor(logging.INFO):
        return
    found, free = estimate(config, device=device, **options), available(device)
    log.info("%s", found)
    if free is not None and free < (found.activations if loaded else found.total):
        log.warning("Only %s of memory are free: this may fail, or be very slow.", size(free))


def decoding_activations(config: TurboVAEConfig | VideoVAEConfig | AudioVAEConfig, shape: Sequence[int],
                         dtype: torch.dtype, device: str | torch.device) -> int:
    """The most bytes of activations while a latent [B, C, T, H, W] or [B, C, n] is decoded, its frames not held."""
    device = torch.device(device).type
    if not isinstance(config, AudioVAEConfig):
        return shape[0] * _video(config, tuple(shape[2:]), dtype, device, None)
    count = min(shape[2], WINDOWS * TILE)
    # Beyond these only the latent grows, and the waveform, which is there in tiles and joined.
    rest = (shape[2] - count) * (config.latent_channels + 2 * config.hop * config.audio_channels)
    return shape[0] * (_audio(config, count, dtype, device) + rest * dtype.itemsize)


@lru_cache(maxsize=32)
def encoding_activations(config: VideoVAEConfig | AudioVAEConfig, shape: tuple[int, ...], dtype: torch.dtype,
                         device: str) -> int:
    """The most bytes while frames [B, 3, F, h, w] or a waveform [B, 2, L] are encoded, themselves included."""
    vae = on_meta(config, dtype)
    if isinstance(config, AudioVAEConfig):
        most, encode = LONG_WINDOW_SECONDS * SAMPLE_RATE, vae.encode_long
    else:
        most, encode = 1 + WINDOWS * config.temporal_factor, vae.encode
    first = shape[0], shape[1], min(shape[2], most), *shape[3:]
    rest = (prod(shape) - prod(first)) * dtype.itemsize  # it only waits to be encoded
    return dry_run(lambda: encode(torch.empty(first, dtype=dtype, device="meta")), device) + rest


def clip_in_words(latent: tuple[int, int, int], audio: int, text: int) -> str:
    """A clip's size, length and tokens. latent: (T, H, W); audio, text: tokens."""
    video = prod(latent) // PATCH**2
    width, height = (side * PIXELS_PER_LATENT for side in latent[:0:-1])
    return (f"{width}x{height}, {(audio - 1) / FPS:.3g} s, {video + audio + text:,} tokens "
            f"({video:,} video, {audio:,} audio, {text:,} text)")


def _resident(dit: MagiHumanDiT, resident: int | None) -> tuple[int, int]:
    """(bytes that stay, with buffers; bytes that come in at each pass)."""
    streamed, buffers = streamed_sizes(dit.blocks, choose_streamed(dit.blocks, resident))
    return sum(t.nbytes for t in dit.state_dict().values()) - streamed + buffers, streamed


def _network_advice(dit: MagiHumanDiT, dtype: torch.dtype, resident: int | None, weights: int, activations: int) -> str:
    """What makes most difference."""
    narrow = 0 if dtype.itemsize == 1 else _resident(on_meta(dit.config, torch.int8), resident)[0]
    narrower = f"weights in 8 bits ({size(narrow)})" if 0 < narrow < 0.9 * weights else ""
    layers = len(dit.blocks)
    most = layers if resident is None else min(layers, resident)
    fewer = [n for n in sorted({0, layers // 5, layers // 2}) if n < most]
    least = fewer and _resident(dit, fewer[0])[0]
    blocks = ""
    if least and least < 0.9 * weights:
        options = ", ".join(f"{size(_resident(dit, n)[0])} of weights with {n}" for n in fewer)
        blocks = f"fewer resident blocks ({options})"
    smaller = "a smaller picture or a shorter clip"
    order = (smaller, narrower, blocks) if activations > weights else (narrower, blocks, smaller)
    return ", then ".join(filter(None, order))


@lru_cache(maxsize=32)
def network_activations(config: DiTConfig, latent: tuple[int, int, int], audio: int, text: int, dtype: torch.dtype,
                        device: str, guided: bool) -> int:
    """The most bytes of activations in a forward pass. latent: (T, H, W); audio, text: tokens."""
    small, _ = one_of_each_kind(config)
    dit = on_meta(small, dtype)
    if dit.piece is None:
        dit.piece = CPU_PIECE if device == "cpu" else PIECE
    shapes = (1, config.video_channels, *latent), (1, config.audio_channels, audio), (1, text, config.text_channels)

    def run() -> None:
        inputs = [torch.empty(shape, device="meta") for shape in shapes]
        dit.forward_many([inputs] * (2 if guided else 1), attention=lambda q, k, v: torch.empty_like(q))

    return dry_run(run, device)


@lru_cache(maxsize=32)
def _video(config: TurboVAEConfig | VideoVAEConfig, latent: tuple[int, ...], dtype: torch.dtype, device: str,
           tile: int | None) -> int:
    """Activations of a video decoder. latent: (T, H, W)."""
    if isinstance(config, TurboVAEConfig) and tile is not None and max(latent[1:]) > tile:
        return _tiled(config, latent, dtype, device, tile)
    vae = on_meta(config, dtype)

    def run() -> None:
        z = torch.empty(1, config.latent_channels, *latent, device="meta")  # which the caller holds meanwhile
        for _ in islice(vae.decode_windows(z), WINDOWS):
            pass

    return dry_run(run, device)


def _tiled(config: TurboVAEConfig, latent: tuple[int, ...], dtype: torch.dtype, device: str, tile: int) -> int:
    """One tile's work, and beside it what the tiles are put together in; running all tiles would take long."""
    length, *sides = latent
    inner = [min(side, tile) for side in sides]
    latents = min(length, max(config.first_chunk_size + 1, config.step_size + 2))
    # Bytes of a window's frames, per latent pixel.
    frame = 4 * config.out_channels * config.temporal_factor * latents * config.spatial_factor**2
    # This window's frames and the last one's, and a tile's share of it before it is added.
    return _video(config, (length, *inner), dtype, device, None) + 2 * frame * prod(sides) + frame * prod(inner)


@lru_cache(maxsize=32)
def _audio(config: AudioVAEConfig, tokens: int, dtype: torch.dtype, device: str) -> int:
    vae = on_meta(config, dtype)
    return dry_run(lambda: vae.decode(torch.empty(1, config.latent_channels, tokens, device="meta")), device)


@lru_cache(maxsize=32)
def _text(config: TextEncoderConfig, tokens: int, dtype: torch.dtype, device: str) -> int:
    encoder = on_meta(replace(config, num_hidden_layers=min(2, config.num_hidden_layers)), dtype)
    return dry_run(lambda: encoder(torch.empty(1, tokens, dtype=torch.long, device="meta")), device)


@lru_cache(maxsize=32)
def _weights(config: Config, dtype: torch.dtype) -> int:
    return sum(tensor.nbytes for tensor in on_meta(config, dtype).state_dict().values())
