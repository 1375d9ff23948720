"""A VIDEO that is decoded while it is written, a window at a time: memory does not grow with its length."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import Input, InputImpl, Types
from torch import Tensor

from ...magihuman_core.atomic import whole_file
from ...magihuman_core.media.mp4 import AudioTrack, add_video, video_frame
from ...magihuman_core.sizes import FPS, PIXELS_PER_LATENT
from .media import decode_audio, fit_length
from .vae import VideoStage

# Audio latents that are decoded at once, and those before and after whose sound is thrown away: the decoder sees 10,
# the resampler's ringing at the ends is below -60 dB after 8 more.
PIECE, CONTEXT = 50, 18
TILES = {"tile": 16, "overlap": 4}  # latent pixels
CONTAINERS = {"mkv": "matroska", "mp4": "mp4"}  # of what we write ourselves, by the name ComfyUI gives them

log = logging.getLogger(__name__)


class LazyFrames:
    """Frames [F, h, w, 3] of a video latent, decoded each time they are gone through."""

    def __init__(self, vae, latent: Tensor, count: int):
        """latent: [1, C, T, H, W]; count: of its frames, those that are given."""
        self.vae, self.latent = vae, latent
        height, width = (PIXELS_PER_LATENT * side for side in latent.shape[3:])
        self.shape = (count, height, width, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def pieces(self) -> Iterator[Tensor]:
        """IMAGE [f, h, w, 3] of one window each."""
        count, position = len(self), 0
        progress = comfy.utils.ProgressBar(count)
        for piece in self._decoded():
            comfy.model_management.throw_exception_if_processing_interrupted()
            yield piece[: count - position]
            position += len(piece)
            progress.update_absolute(min(position, count), count)
            if position >= count:
                return

    def __iter__(self) -> Iterator[Tensor]:
        for piece in self.pieces():
            yield from piece

    def tensor(self) -> Tensor:
        images = torch.empty(self.shape)
        position = 0
        for piece in self.pieces():
            images[position : position + len(piece)] = piece
            position += len(piece)
        return images

    def _decoded(self) -> Iterator[Tensor]:
        vae, stage = self.vae, self.vae.first_stage_model
        if not isinstance(stage, VideoStage):  # core's own, which decodes a clip in one piece
            yield vae.decode(self.latent)[0]
            return
        memory = vae.memory_used_decode(self.latent.shape, vae.vae_dtype)
        comfy.model_management.load_models_gpu([vae.patcher], memory_required=memory)
        given = 0
        for tiles in ({}, TILES):  # as core's VAE.decode does: in tiles where memory does not suffice
            try:
                for images in self._windows(stage.vae, tiles, given):
                    given += len(images)
                    yield images
                return
            except Exception as error:
                if tiles:
                    raise
                comfy.model_management.raise_non_oom(error)
            log.warning("Memory ran out while the picture was decoded: it goes on in tiles.")
            comfy.model_management.soft_empty_cache()

    def _windows(self, decoder, tiles: dict[str, int], given: int) -> Iterator[Tensor]:
        """IMAGE of each window, without the first frames, which were `given` before."""
        vae = self.vae
        windows = decoder.decode_windows(self.latent.to(vae.device, vae.vae_dtype), normalized=False, **tiles)
        while True:
            with comfy.model_management.cuda_device_context(vae.device), torch.inference_mode():  # not for others
                window = next(windows, None)
                if window is None:
                    return
                skipped = min(given, window.shape[2])
                given -= skipped
                images = window[0][:, skipped:].to("cpu", torch.float32, copy=True)
                images = vae.process_output(images).movedim(0, -1)
            yield images


class LazyAudio:
    """The sound of a clip, [2, n] at a rate, in pieces: decoded from its latent [1, c, A], or of a recording."""

    def __init__(self, rate: int, count: int, vae, latent: Tensor, waveform: Tensor | None):
        """count: frames of the clip. waveform: [2, n] at the rate, which is heard instead of the latent."""
        self.rate, self.count, self.vae, self.latent, self.waveform = rate, count, vae, latent, waveform

    def pieces(self) -> Iterator[Tensor]:
        """[2, n], in order, to the end of the frames."""
        samples = self.rate // FPS
        if self.waveform is not None:
            yield fit_length(self.waveform, self.count * samples)
            return
        for start in range(0, self.count, PIECE):
            end = min(start + PIECE, self.count)
            left = max(0, start - CONTEXT)
            part = decode_audio(self.vae, self.latent[..., left : end + CONTEXT], self.rate)
            yield fit_length(part[:, (start - left) * samples : (end - left) * samples], (end - start) * samples)

    def audio(self) -> dict[str, Any]:
        """All of it, as AUDIO."""
        return {"waveform": torch.cat(list(self.pieces()), 1).clamp(-1, 1)[None], "sample_rate": self.rate}


class LazyVideo(Input.Video):
    """VIDEO of lazy frames and audio, at 25 frames per second."""

    def __init__(self, frames: LazyFrames, audio: LazyAudio):
        self.frames, self.audio = frames, audio

    def get_components(self) -> Types.VideoComponents:
        return Types.VideoComponents(images=self.frames.tensor(), audio=self.audio.audio(), frame_rate=Fraction(FPS))

    def get_dimensions(self) -> tuple[int, int]:
        return self.frames.shape[2], self.frames.shape[1]

    def get_duration(self) -> float:
        return len(self.frames) / FPS

    def get_frame_count(self) -> int:
        return len(self.frames)

    def get_frame_rate(self) -> Fraction:
        return Fraction(FPS)

    def get_color_space(self) -> str:
        return "sRGB"

    def as_trimmed(self, start_time=None, duration=None, strict_duration=False):
        video = InputImpl.VideoFromFile(self.get_stream_source())
        return video.as_trimmed(start_time, duration, strict_duration)

    def as_cropped(self, *args, **kwargs):  # of newer cores, as the next
        return InputImpl.VideoFromFile(self.get_stream_source()).as_cropped(*args, **kwargs)

    def as_resized(self, *args, **kwargs):
        return InputImpl.VideoFromFile(self.get_stream_source()).as_resized(*args, **kwargs)

    def save_to(self, path, format=Types.VideoContainer.AUTO, codec=Types.VideoCodec.AUTO, metadata=None,  # noqa: A002
                bit_depth=None, crf=None, color_space=None, preset=None, **more) -> None:
        """Write H.264 and AAC as mp4 or Matroska; for other formats ComfyUI's own writer goes through the frames.

        A file appears under its name only when it is complete.
        """
        kind = _container(path, format)
        plain = str(getattr(codec, "value", codec)) in ("auto", "h264") and color_space in (None, "auto", "sRGB")
        if kind not in CONTAINERS or not plain or (bit_depth or 8) > 8:
            parts = Types.VideoComponents(images=self.frames, audio=self.audio.audio(), frame_rate=Fraction(FPS))
            InputImpl.VideoFromComponents(parts).save_to(path, format=format, codec=codec, metadata=metadata, **{
                name: value for name, value in (("bit_depth", bit_depth), ("crf", crf), ("color_space", color_space),
                                                ("preset", preset), *more.items()) if value is not None})
            return
        quality = {name: str(value) for name, value in (("crf", crf), ("preset", preset)) if value is not None}
        if not isinstance(path, str | Path):
            self._write(path, kind, "use_metadata_tags", metadata, quality)
            return
        with whole_file(Path(path)) as file:
            self._write(file.name, kind, "use_metadata_tags+faststart", metadata, quality)

    def _write(self, target, kind: str, flags: str, metadata, quality: dict[str, str]) -> None:
        options = {"movflags": flags} if kind == "mp4" else {}
        rate = self.audio.rate
        with av.open(target, "w", format=CONTAINERS[kind], options=options) as container:
            for key, value in (metadata or {}).items():
                container.metadata[key] = json.dumps(value)
            video = add_video(container, *self.get_dimensions(), Fraction(FPS), quality)
            track = AudioTrack(container, torch.zeros(2, 0), rate)
            sounds, heard = self.audio.pieces(), 0
            count = 0
            for piece in self.frames.pieces():
                for frame in (piece * 255).clamp_(0, 255).to(torch.uint8):
                    container.mux(video.encode(video_frame(frame, count, Fraction(FPS))))
                    count += 1
                    while heard < count * rate // FPS:
                        sound = next(sounds)
                        track.append(sound)
                        heard += sound.shape[1]
                    track.advance(count * rate // FPS)
            container.mux(video.encode(None))
            track.finish()


def _container(path, container) -> str:
    """"mp4", "mkv" or another, as ComfyUI chooses it."""
    wanted = str(getattr(container, "value", container))
    if wanted != "auto":
        return wanted
    suffix = Path(path).suffix.lower()[1:] if isinstance(path, str | Path) else ""
    return suffix if suffix in ("mkv", "webm") else "mp4"


def lazy_video(vae, audio_vae, video: Tensor, audio: Tensor, count: int, waveform: Tensor | None, rate: int):
    """The VIDEO of both latents of one clip of `count` frames. waveform: [2, n] at the rate that is heard instead."""
    sound = LazyAudio(rate, count, audio_vae, audio, waveform)
    return LazyVideo(LazyFrames(vae, video, count), sound)
