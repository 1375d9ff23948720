"""A face for a voice that is still being spoken: sound in as it arrives, frames and sound out window by window.

The models are loaded once. Each window is a clip that begins with the last latents of the one before (as Extension's
is), hears the sound of its own time, and is decoded with its neighbours as context; so memory does not grow.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, shown
from ..loading.vae import load_audio_vae
from ..media.image import frames_to_uint8
from ..media.waveform import as_floating, resample_recording, to_stereo
from ..model.dit import MagiHumanDiT
from ..runtime.memory import decoding_activations, encoding_activations
from ..sampling.frozen import JointLatent, empty_latent, keep_audio, keep_start
from ..sampling.latents import pack_latents, unpack_latents
from ..sampling.noise import SEEDS, start_noise
from ..sampling.regenerate import keep_still
from ..sampling.solvers import SOLVERS, flow_sigmas
from ..sampling.windows import Texts, WindowedDenoiser, plan_windows
from ..sizes import AUDIO_PER_FRAME, FPS, decoded_frames, full_audio
from ..vae.audio import AudioVAE, encoder_context
from ..vae.turbo import TurboVAE
from ..vae.turbo_config import TurboVAEConfig
from ..vae.video import VideoVAE
from ..vae.video_blocks import State
from . import stages
from .parts import Parts
from .request import Pass, Request

AHEAD = 2  # audio latents that are waited for beyond a window, for the encoder hears a little ahead
CARRIED = 3  # latent frames of a window that the next one begins with

log = logging.getLogger(__name__)


def check_stream_rate(rate: int) -> None:
    """Raise InputError for sound that cannot be cut at frames."""
    if isinstance(rate, bool) or not isinstance(rate, int) or rate <= 0 or rate % FPS:
        raise InputError(f"rate is {shown(rate)} samples/s, expected a multiple of {FPS}, such as 16000, 24000, "
                         "44100 or 48000.")


@dataclass
class AudioBuffer:
    """The sound that has come so far, of which no more is kept than is still needed.

    Positions are in frames from the stream's start.
    """

    rate: int
    start: int = 0
    samples: Tensor = field(default_factory=lambda: torch.zeros(2, 0))

    def __post_init__(self) -> None:
        check_stream_rate(self.rate)

    @property
    def per_frame(self) -> int:
        return self.rate // FPS

    @property
    def end(self) -> int:
        """Whole frames that have come."""
        return self.start + self.samples.shape[1] // self.per_frame

    def append(self, chunk: Tensor) -> None:
        """chunk: [samples] or [channels, samples], floating in [-1, 1], or whole numbers by their dtype's range."""
        chunk = as_floating(chunk, "The sound that came")
        if not bool(torch.isfinite(chunk).all()):
            raise InputError("The sound that came holds samples that are not numbers. Send it again.")
        self.samples = torch.cat([self.samples, to_stereo(chunk[None] if chunk.ndim == 1 else chunk)], 1)

    def finish(self) -> None:
        """Fill the last frame with silence."""
        self.samples = F.pad(self.samples, (0, -self.samples.shape[1] % self.per_frame))

    def read(self, start: int, end: int) -> Tensor:
        """[2, samples] of some frames; silence where nothing has come."""
        first, last = ((frame - self.start) * self.per_frame for frame in (start, end))
        part = self.samples[:, first:last]
        return F.pad(part, (0, last - first - part.shape[1]))

    def forget(self, before: int) -> None:
        before = max(before, self.start)
        self.samples = self.samples[:, (before - self.start) * self.per_frame :].clone()
        self.start = before


def check_carried(window: int, carried: int) -> int:
    """How many latent frames of a window the next one begins with. Raises InputError where that cannot be."""
    if not 1 <= carried < window:
        raise InputError(f"Windows of {window} latent frames cannot carry {carried} of them over. Choose longer "
                         "windows, or a smaller overlap.")
    return carried


class LatentDecoder:
    """Latent frames in, frames out: one latent frame is held back as context, until the end."""

    def __init__(self, vae: TurboVAE | VideoVAE) -> None:
        self.vae, self.waiting = vae, torch.empty(0)
        self.state: State = {}
        self.first = True

    def decode(self, latents: Tensor, last: bool) -> Tensor:
        """Normalized latents [1, C, T, H, W] that follow those before -> uint8 [F, h, w, 3]."""
        if isinstance(self.vae, VideoVAE):
            raw = self.vae.statistics.denormalize(latents)
            pieces = (self.vae.frames(piece.to(self.vae.dtype), self.state) for piece in raw.split(1, 2))
            return torch.cat([frames_to_uint8(piece.clamp(-1, 1)).cpu() for piece in pieces])
        z = latents if self.first else torch.cat([self.waiting, latents], 2)
        frames = self.vae(self.vae.statistics.denormalize(z).to(self.vae.dtype), self.first)
        factor = self.vae.config.temporal_factor
        frames = frames[:, :, 0 if self.first else factor : None if last else -factor]
        self.waiting, self.first = z[:, :, -2:], False
        return frames_to_uint8(frames).cpu()

    def activations(self, window: int, height: int, width: int, device: torch.device) -> int:
        """The most bytes while a window of so many latent frames is decoded. height, width: latent pixels."""
        config, count = self.vae.config, window + 1  # at most so many of context more than are carried
        if isinstance(config, TurboVAEConfig):  # all at once, and not in windows of its own
            config = replace(config, first_chunk_size=count, step_size=count)
        return decoding_activations(config, (1, config.latent_channels, count, height, width), self.vae.dtype, device)


class Live:
    """What makes the windows of one stream, one after the other."""

    def __init__(self, parts: Parts, request: Request, conditions: stages.Conditions, stills: list[Tensor],
                 carried: int = CARRIED) -> None:
        pass_: Pass = request.first
        self.parts, self.pass_, self.conditions, self.stills = parts, pass_, conditions, stills
        self.carried, self.seed = carried, request.seeds[0]
        self.audio_length = full_audio(pass_.window)  # audio latents that a window hears
        # First what stays beside the network, which is planned into the memory that is left.
        self.audio_vae: AudioVAE = parts.load(load_audio_vae, parts.open("audio_vae"))
        self.context = encoder_context(self.audio_vae.config)[0]
        self.decoder = LatentDecoder(stages.load_decoder(parts))
        self.dit: MagiHumanDiT = stages.load_network(parts, pass_, conditions, self.audio_length, self._reserve())
        self.last: tuple[Tensor, Tensor] | None = None  # the carried video, and its audio
        self.begun = False
        self._heard(AudioBuffer(16000), 0)  # silence: what resampling and encoding set up at first, no voice waits for

    def _reserve(self) -> int:
        """Bytes that are needed while the network is loaded, but does not run: to hear a window, or to decode it."""
        vae, pass_ = self.audio_vae, self.pass_
        samples = (self.context + self.audio_length + AHEAD) * vae.hop
        width, height = (side // self.decoder.vae.config.spatial_factor for side in pass_.size)
        return max(encoding_activations(vae.config, (1, 2, samples), torch.float32, self.parts.device.type),
                   self.decoder.activations(pass_.window, height, width, self.parts.device))

    def windows(self, chunks: Iterable[Tensor], rate: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(frames uint8 [F, h, w, 3], their sound [2, F * rate / 25]) of each window, as soon as its sound is there.

        A window is asked for when the one before was taken: who reads slowly is waited for. The end of the chunks, or
        closing the iterator, ends the stream. Raises InputError for a second time: the next stream is one of its own.
        """
        if self.begun:
            raise InputError("This stream was used already. Open another one, which begins with the picture again.")
        self.begun = True
        buffer, source = AudioBuffer(rate), iter(chunks)
        start = number = shown = 0  # the window's first latent frame, its number, and the frames given so far
        ended = False
        while True:
            needed = AUDIO_PER_FRAME * start + self.audio_length
            while not ended and buffer.end < needed + AHEAD:
                chunk = next(source, None)
                if chunk is None:
                    ended = True
                    buffer.finish()
                else:
                    buffer.append(chunk)
            if buffer.end <= shown:
                return
            last = ended and buffer.end <= decoded_frames(start + self.pass_.window)
            with torch.inference_mode():
                frames = self._window(buffer, start, number, last)
            count = min(len(frames), buffer.end - shown)
            yield frames[:count], buffer.read(shown, shown + count)
            shown += count
            if last:
                return
            start += self.pass_.window - self.carried
            number += 1
            buffer.forget(min(shown, AUDIO_PER_FRAME * start - self.context))

    def _window(self, buffer: AudioBuffer, start: int, number: int, last: bool) -> Tensor:
        """The frames of a window that were not given yet."""
        latent = self._kept(self._heard(buffer, AUDIO_PER_FRAME * start))
        seed = (self.seed + 2 * number) % SEEDS  # each draws its start noise from one, its steps' from the next
        noise = (stream.to(self.parts.device) for stream in start_noise((latent.video.shape, latent.audio.shape), seed))
        x, shapes = pack_latents(*noise)
        negative = None if self.pass_.guidance is None else self.conditions.negative
        texts: Texts = (self.conditions.of_window(start, self.pass_.window), negative)
        windows = plan_windows(self.audio_length, self.pass_.window, 1)
        model = WindowedDenoiser(self.dit, shapes, windows, lambda _: texts, self.pass_.guidance,
                                 latent.frozen_video, latent.frozen_audio)
        x = SOLVERS[self.pass_.recipe.solver](model, x, flow_sigmas(self.pass_.steps), {"seed": seed}, disable=True)
        video = unpack_latents(x, shapes)[0]
        new = video if self.last is None else video[:, :, self.carried :]
        self.last = video[:, :, -self.carried :], latent.audio
        return self.decoder.decode(new, last)

    def _heard(self, buffer: AudioBuffer, first: int) -> Tensor:
        """The audio latents of a window, encoded with what was heard before them."""
        begin, end = max(buffer.start, first - self.context), first + self.audio_length
        waveform = resample_recording(buffer.read(begin, max(end, min(buffer.end, end + AHEAD))), buffer.rate,
                            self.audio_vae.sample_rate)
        encoded = self.audio_vae.encode(waveform[None].to(self.parts.device))
        return encoded[:, :, first - begin : first - begin + self.audio_length]

    def _kept(self, audio: Tensor) -> JointLatent:
        """What a window begins with: a picture in the first, the end of the one before in the others."""
        channels = self.dit.config.video_channels, self.dit.config.audio_channels
        latent = empty_latent(*self.pass_.size, self.audio_length, channels, self.parts.device)
        if self.last is not None:
            latent = keep_start(latent, *self.last)
        else:
            for still in self.stills:
                latent = keep_still(latent, 0, still)
        return keep_audio(latent, audio)
