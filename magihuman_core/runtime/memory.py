"""How much memory a part of the model needs, known before anything is loaded.

    bytes of weights, counted on the meta device  +  peak of a dry run on tensors without content

A dry run (see dry_run.py) goes through the part's own code. Of the network one block of each kind is run, of
windows and tiles the first few.

Not counted: what Python and PyTorch themselves take (on CUDA about half a GB), scratch memory of CUDA's
kernels, and the caches and fragments of memory allocators.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from math import prod

import torch

from ..errors import InputError
from ..model.config import PATCH, DiTConfig
from ..model.dit import MagiHumanDiT, tokens_at_once
from ..recipes import BASE
from ..sizes import (
    FPS,
    PIXELS_PER_LATENT,
    PIXELS_PER_TOKEN,
    TEXT_TOKENS,
    audio_length,
    byte_size,
    latent_frames,
)
from ..text.config import TextEncoderConfig
from ..vae.audio import TILE, AudioVAEConfig
from ..vae.tiling import OVERLAP, tile_count
from ..vae.turbo import TurboVAEConfig
from ..vae.video import TILED_LENGTH, VideoVAEConfig
from .build import Config, on_meta, one_of_each_kind
from .dry_run import dry_run
from .streaming import check_resident_blocks, choose_streamed, streamed_sizes

WINDOWS = 3  # of a decoder: with the third, memory no longer grows


@dataclass(frozen=True)
class Estimate:
    """What one part needs on the device it computes on, in bytes."""

    part: str
    clip: str  # what it was estimated for, in words
    weights: int  # resident, with the buffers where blocks are streamed
    activations: int  # at their peak
    streamed: int = 0  # brought in at each pass
    advice: str = ""  # what to lower first
    resident_blocks: int | None = None  # of a network or (as layers) a text encoder, of so many in all; None: all
    blocks: int = 0
    tile: int | None = None  # of a video decoder

    @property
    def total(self) -> int:
        return self.weights + self.activations

    def __str__(self) -> str:
        through = f", {byte_size(self.streamed)} more come in at each pass" if self.streamed else ""
        advice = f" To need less: {self.advice}." if self.advice else ""
        return (f"{self.part}, {self.clip}: {byte_size(self.total)}, of which {byte_size(self.weights)} weights and "
                f"{byte_size(self.activations)} activations{through}.{advice}")


def estimate(config: Config, *, width: int = BASE.width, height: int = BASE.height, seconds: float = 4,
             dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cuda",
             resident_blocks: int | None = None, guided: bool = False, text_tokens: int = TEXT_TOKENS,
             tile: int | None = None, tokens: int | None = None,
             compute_dtype: torch.dtype | None = None, wide: frozenset[str] = frozenset()) -> Estimate:
    """The memory that a part of the model needs for a clip.

    config: of a network, a Turbo VAE, video VAE or audio VAE (for decoding) or a text encoder. width, height: pixels;
    tokens: audio latents, instead of seconds. dtype: of the weights (and of computing); device: "cpu" or another, for
    which work is cut into larger pieces. resident_blocks: as for load_dit, or the text encoder's resident_layers;
    guided: with a negative prompt; text_tokens: of each of them. tile: as for the video VAEs' decode. compute_dtype: as
    for load_dit. wide: see checkpoint.quantize.kept_wide. Raises InputError for sizes that no clip can have.
    """
    tokens = audio_length(seconds) if tokens is None else tokens
    if min(width, height) < PIXELS_PER_TOKEN or tokens < 1 or text_tokens < 1:
        raise InputError(f"There is no clip of {width}x{height} pixels, {tokens} audio and {text_tokens} text tokens.")
    latent = latent_frames(tokens), height // PIXELS_PER_TOKEN * PATCH, width // PIXELS_PER_TOKEN * PATCH
    device = torch.device(device).type
    if isinstance(config, DiTConfig):
        weights, streamed = resident(config, resident_blocks, dtype, compute_dtype, wide)
        activations = network_activations(config, latent, tokens, text_tokens, dtype, device, guided, compute_dtype)
        advice = _network_advice(config, dtype, compute_dtype, wide, resident_blocks, weights, activations)
        return Estimate("network", clip_in_words(latent, tokens, text_tokens), weights, activations, streamed, advice,
                        resident_blocks, config.layers)
    if isinstance(config, TextEncoderConfig):
        weights, streamed = resident(config, resident_blocks, dtype, compute_dtype, wide)
        activations = _text(config, text_tokens, dtype, device, compute_dtype)
        advice = "" if dtype.itemsize == 1 else "weights in 8 bits"
        return Estimate("text encoder", f"{text_tokens} tokens", weights, activations, streamed, advice,
                        resident_blocks, config.num_hidden_layers)
    weights, length = weight_bytes(config, dtype), f"{(tokens - 1) / FPS:.3g} s"
    if isinstance(config, AudioVAEConfig):
        activations = decoding_activations(config, (1, config.latent_channels, tokens), dtype, device)
        return Estimate("audio VAE", length, weights, activations, advice="a shorter clip")
    activations = _video(config, latent, dtype, device, tile)
    half, turbo = min(*latent[1:], tile or max(latent)) // 2, isinstance(config, TurboVAEConfig)
    options = (f"tiles of {half} latent pixels" if half > OVERLAP else "", "" if turbo else "the Turbo VAE",
               "a smaller picture")
    return Estimate("Turbo VAE" if turbo else "video VAE", f"{width}x{height}, {length}", weights, activations,
                    advice=", then ".join(filter(None, options)), tile=tile)


def decoding_activations(config: TurboVAEConfig | VideoVAEConfig | AudioVAEConfig, shape: Sequence[int],
                         dtype: torch.dtype, device: str | torch.device, tile: int | None = None) -> int:
    """The most bytes of activations while a latent [B, C, T, H, W] or [B, C, n] is decoded, its frames not held.

    tile: of a video, as for its VAE's decode.
    """
    device = torch.device(device).type
    if not isinstance(config, AudioVAEConfig):
        return shape[0] * _video(config, tuple(shape[2:]), dtype, device, tile)
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
        most, encode = WINDOWS * TILE * config.hop, vae.encode_long
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


def resident(config: DiTConfig | TextEncoderConfig, count: int | None, dtype: torch.dtype,
             compute_dtype: torch.dtype | None = None, wide: frozenset[str] = frozenset()) -> tuple[int, int]:
    """(bytes that stay, with buffers; bytes that come in at each pass), where `count` blocks or layers stay."""
    check_resident_blocks(count)
    sizes = _resident(config, dtype, compute_dtype, wide)
    return sizes[-1 if count is None else min(count, len(sizes) - 1)]


@lru_cache(maxsize=16)
def _resident(config: DiTConfig | TextEncoderConfig, dtype: torch.dtype, compute_dtype: torch.dtype | None,
              wide: frozenset[str]) -> list[tuple[int, int]]:
    """What `resident` gives for none, one, ... and all."""
    part = on_meta(config, dtype, compute_dtype, wide)
    blocks = part.blocks if isinstance(part, MagiHumanDiT) else part.encoder.layers
    total = sum(t.nbytes for t in part.state_dict().values())
    found = [streamed_sizes(blocks, choose_streamed(blocks, count)) for count in range(len(blocks) + 1)]
    return [(total - streamed + buffers, streamed) for streamed, buffers in found]


def _network_advice(config: DiTConfig, dtype: torch.dtype, compute_dtype: torch.dtype | None, wide: frozenset[str],
                    count: int | None, weights: int, activations: int) -> str:
    """What makes most difference."""
    narrow = 0 if dtype.itemsize == 1 else resident(config, count, torch.int8)[0]
    narrower = f"weights in 8 bits ({byte_size(narrow)})" if 0 < narrow < 0.9 * weights else ""
    layers = config.layers
    most = layers if count is None else min(layers, count)
    fewer = {n: resident(config, n, dtype, compute_dtype, wide)[0]
             for n in sorted({0, layers // 5, layers // 2}) if n < most}
    blocks = ""
    if fewer and fewer[0] < 0.9 * weights:
        options = ", ".join(f"{byte_size(size)} of weights with {n}" for n, size in fewer.items())
        blocks = f"fewer resident blocks ({options})"
    smaller = "a smaller picture or a shorter clip"
    order = (smaller, narrower, blocks) if activations > weights else (narrower, blocks, smaller)
    return ", then ".join(filter(None, order))


@lru_cache(maxsize=32)
def network_activations(config: DiTConfig, latent: tuple[int, int, int], audio: int, text: int, dtype: torch.dtype,
                        device: str, guided: bool, compute_dtype: torch.dtype | None = None) -> int:
    """The most bytes of activations in a forward pass. latent: (T, H, W); audio, text: tokens."""
    small, _ = one_of_each_kind(config)
    dit = on_meta(small, dtype, compute_dtype)
    if dit.piece is None:
        dit.piece = tokens_at_once(device, fused=False)
    shapes = (1, config.video_channels, *latent), (1, config.audio_channels, audio), (1, text, config.text_channels)

    def run() -> None:
        inputs = [torch.empty(shape, device="meta") for shape in shapes]
        dit.forward_many([inputs] * (2 if guided else 1), attention=lambda q, k, v: torch.empty_like(q))

    return dry_run(run, device)


@lru_cache(maxsize=32)
def _video(config: TurboVAEConfig | VideoVAEConfig, latent: tuple[int, ...], dtype: torch.dtype, device: str,
           tile: int | None) -> int:
    """Activations of a video decoder. latent: (T, H, W)."""
    if tile is not None and max(latent[1:]) > tile:
        return _tiled(config, latent, dtype, device, tile)
    vae = on_meta(config, dtype)

    def run() -> None:
        z = torch.empty(1, config.latent_channels, *latent, device="meta")  # which the caller holds meanwhile
        for _ in islice(vae.decode_windows(z), WINDOWS):
            pass

    return dry_run(run, device)


def _tiled(config: TurboVAEConfig | VideoVAEConfig, latent: tuple[int, ...], dtype: torch.dtype, device: str,
           tile: int) -> int:
    """One tile's work; running all tiles would take long. On the CPU also what the tiles are put together in."""
    length, *sides = latent
    inner = [min(side, tile) for side in sides]
    # Bytes of a latent frame's frames, per latent pixel.
    frame = 4 * 3 * config.temporal_factor * config.spatial_factor**2
    if isinstance(config, TurboVAEConfig):
        # What is put together is a window, while the caller may hold the one before. A piece of a tile is weighted
        # before it is added; in a dry run of several windows the one before stands for it.
        several = length > config.first_chunk_size
        window = min(length, max(config.first_chunk_size, config.step_size))
        held, piece = float(window * (1 + several)), window * (not several)
    else:
        # As many frames as a tile is decoded at once for, the caller's of before, and a latent frame's.
        several = length > TILED_LENGTH
        held, piece = min(length, TILED_LENGTH) * (1 + several), 1
    # The latent is there whole, too, and once more denormalized.
    beside = frame * piece * prod(inner) + 8 * config.latent_channels * length * (prod(sides) - prod(inner))
    if device == "cpu":
        beside += round(frame * held) * prod(sides)
        if isinstance(config, VideoVAEConfig) and several:  # what the layers remember of each other tile
            tiles = prod(tile_count(side, tile) for side in sides)
            beside += (tiles - 1) * _remembered(config, tuple(inner), dtype)
    return _video(config, (length, *inner), dtype, device, None) + beside


@lru_cache(maxsize=32)
def _remembered(config: VideoVAEConfig, size: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes that the decoder's layers keep of a tile [h, w] between two latent frames."""
    state: dict[torch.nn.Module, torch.Tensor] = {}
    latent = torch.empty(1, config.latent_channels, 1, *size, dtype=dtype, device="meta")
    with torch.inference_mode(False), torch.no_grad():
        on_meta(config, dtype).frames(latent, state)
    return sum(past.nbytes for past in state.values())


@lru_cache(maxsize=32)
def _audio(config: AudioVAEConfig, tokens: int, dtype: torch.dtype, device: str) -> int:
    vae = on_meta(config, dtype)
    return dry_run(lambda: vae.decode(torch.empty(1, config.latent_channels, tokens, device="meta")), device)


@lru_cache(maxsize=32)
def _text(config: TextEncoderConfig, tokens: int, dtype: torch.dtype, device: str,
          compute_dtype: torch.dtype | None = None) -> int:
    encoder = on_meta(replace(config, num_hidden_layers=min(2, config.num_hidden_layers)), dtype, compute_dtype)
    return dry_run(lambda: encoder(torch.empty(1, tokens, dtype=torch.long, device="meta")), device)


@lru_cache(maxsize=32)
def weight_bytes(config: Config, dtype: torch.dtype) -> int:
    """Bytes of a part's weights where they are kept in dtype."""
    return sum(tensor.nbytes for tensor in on_meta(config, dtype).state_dict().values())
