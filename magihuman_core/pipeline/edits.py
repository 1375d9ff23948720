"""Clips made of clips: a part of one made anew (dub, retake, another look), and its continuation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..media.frames import Frames
from ..media.mask import Ellipse, check_mask, crop_mask, ellipse_mask, soft_edge
from ..media.waveform import OUTPUT_RATE, continued, replaced, resample_recording
from ..sampling.frozen import JointLatent, all_generated, continued_length, keep_audio, keep_start
from ..sampling.regenerate import (
    all_kept,
    keep_outside,
    latent_region,
    open_frames,
    seen_share,
    shown_frames,
)
from ..sizes import (
    AUDIO_PER_FRAME,
    PIXELS_PER_LATENT,
    covering_length,
    decoded_frames,
    frames_after,
    full_audio,
    latent_frames,
)
from . import stages
from .making import SAMPLES_PER_FRAME, Making, RunStage, check_channels, lengthened, whole_frames
from .parts import Parts
from .request import Size, Waveform, read_image
from .source import Source

if TYPE_CHECKING:
    from PIL import Image

Mask = Union[str, Path, "Image.Image", Tensor, Ellipse]


@dataclass(frozen=True)
class Regeneration(Making):
    """A clip of which a part is made anew.

    audio: what is heard instead of the clip's own, and drives it. region: [height, width] in the clip's own size, 1
    where the picture is made anew; None: everywhere. times: the first and last latent frame of what is made anew;
    None: all of the clip, but for its first latent frame where keep_first.
    """

    source: Source
    audio: Waveform | None = None
    region: Tensor | None = None
    edge: int | None = None  # pixels of its soft border; None: a 32nd of the shorter side
    times: tuple[int, int] | None = None
    video: bool = True  # whether the video of these times is made anew
    new_audio: bool = False  # whether their audio is
    keep_first: bool = False

    @property
    def encoded(self) -> list[str]:
        return [*self.encoded_stills, *self.source.encoded([pass_.size for pass_ in self.request.passes]),
                *(["sound of the clip"] if self.audio is not None or self.source.latents is None else [])]

    @property
    def generates_audio(self) -> bool:
        return self.new_audio

    def latents(self, parts: Parts, run: RunStage) -> dict[Size, JointLatent]:
        sizes = [pass_.size for pass_ in self.request.passes]
        stills = self.stills(parts, run)
        videos = self._encoded(parts, run, sizes)
        audio = self._encoded_audio(run, full_audio(videos[sizes[0]].shape[2]))
        result = {}
        for size in sizes:
            latent = all_kept(videos[size], audio)
            first, last = self.times or (int(self.keep_first), latent.video.shape[2] - 1)
            opened = open_frames(latent, first, last, video=self.video, audio=self.new_audio)
            if self.region is not None:
                opened = keep_outside(opened, latent_region(crop_mask(self.region, *size)))
            result[size] = self.with_stills(opened, stills[size])
        return result

    def finish(self, frames: Frames, waveform: Tensor | None) -> tuple[Frames, Tensor]:
        count, size = self.source.count, (frames.width, frames.height)
        if not self.video:  # the picture stays as it is, in its own size
            frames = self.source.frames(*(side - side % 2 for side in self.source.size))  # H.264 takes no odd ones
        elif self.region is not None or self.times is not None:
            frames = self.source.frames(*size).mixed(frames.part(0, count), self._share(size))
        else:
            frames = frames.part(0, count)
        if self.audio is not None:
            return frames, self._recording(self.audio)
        if waveform is None or self.times is None:
            return frames, self.source.waveform
        start, end = (frame * SAMPLES_PER_FRAME for frame in shown_frames(*self.times))
        return frames, replaced(self.source.waveform, waveform, start, end)

    def whole(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor] | None:
        seen = tuple(PIXELS_PER_LATENT * side for side in video.shape[:2:-1])
        return (video, audio) if self.video or seen == self.source.size else None

    @property
    def facts(self) -> dict[str, Any]:
        return {"driven_by_sound": self.audio is not None}

    def _recording(self, audio: Waveform) -> Tensor:
        """A recording, as long as the clip: cut, or followed by silence."""
        waveform = resample_recording(*audio, OUTPUT_RATE)
        return F.pad(waveform, (0, self.source.count * SAMPLES_PER_FRAME - waveform.shape[1]))

    def _encoded(self, parts: Parts, run: RunStage, sizes: list[Size]) -> dict[Size, Tensor]:
        """The clip's latents at each size; those it was made of, where it has them."""
        found: dict[Size, Tensor] = {}
        if self.source.latents is not None and self.source.size in sizes:
            found[self.source.size] = self.source.latents[0]
        rest = [size for size in sizes if size not in found]
        if rest:
            encoded = run("picture of the clip", stages.encode_frames, [self.source.frames(*size) for size in rest])
            check_channels(parts, encoded[0], self.channels(parts)[0])
            found.update(zip(rest, encoded, strict=True))
        return found

    def _encoded_audio(self, run: RunStage, length: int) -> Tensor:
        """So many audio latents of what is heard; those the clip was made of, where it has them."""
        if self.audio is None and self.source.latents is not None:
            return self.source.latents[1]
        waveform = self.source.waveform if self.audio is None else self._recording(self.audio)
        padded = F.pad(waveform, (0, length * SAMPLES_PER_FRAME - waveform.shape[1]))
        audio: Tensor = run("sound of the clip", stages.encode_audio, (padded, OUTPUT_RATE))
        return audio[:, :, :length].cpu()

    def _share(self, size: Size):
        """How much of the new picture is seen: within the region up to its soft edge, and within the times."""
        where = torch.ones(1, 1) if self.region is None else soft_edge(crop_mask(self.region, *size), self.edge)
        start, end = (0, self.source.count) if self.times is None else shown_frames(*self.times)

        def share(first: int, last: int) -> Tensor:
            level = seen_share(torch.arange(first, last), start, end, self.source.count)
            return level[:, None, None, None] * where[None, :, :, None]

        return share


@dataclass(frozen=True)
class Extension(Making):
    """A clip and what comes after it. request.audio: a recording that is heard from the old end on, and drives."""

    source: Source
    overlap: int  # latent frames of the clip that the continuation begins with

    @property
    def encoded(self) -> list[str]:
        return [*([] if self._carries_audio else ["sound of the clip"]),
                *self.source.encoded([pass_.size for pass_ in self.request.passes])]

    @property
    def _carries_audio(self) -> bool:
        return self.source.latents is not None and self.request.audio is None

    @property
    def kept(self) -> int:
        """Frames, and audio latents, of the clip that the continuation begins with."""
        return decoded_frames(min(self.overlap, latent_frames(self.source.count)))

    @property
    def more(self) -> int:
        """Frames of the clip after those: of a last latent frame that it does not show to its end."""
        return 0 if self.source.latents is None else frames_after(self.source.count)

    def latents(self, parts: Parts, run: RunStage) -> dict[Size, JointLatent]:
        source, request, kept, more = self.source, self.request, self.kept, self.more
        sizes = [pass_.size for pass_ in request.passes]
        overlap = latent_frames(kept)
        tail = source.waveform[:, -(kept + more) * SAMPLES_PER_FRAME :]
        if request.audio is not None:
            heard = whole_frames(request.audio)
            length = covering_length(kept + more + heard.shape[1] // SAMPLES_PER_FRAME)
            tail, _ = lengthened((torch.cat([tail, heard], 1), OUTPUT_RATE), length)
        last = latent_frames(source.count)
        if source.latents is not None and self._carries_audio:
            first = AUDIO_PER_FRAME * (last - overlap)
            audio = source.latents[1][:, :, first : first + kept]
        else:
            audio = run("sound of the clip", stages.encode_audio, (tail, OUTPUT_RATE)).cpu()
        starts = {}
        if source.latents is not None and source.size in sizes:
            starts = {source.size: source.latents[0][:, :, last - overlap : last]}
        rest = [size for size in sizes if size not in starts]
        if rest:
            end = source.count - more
            ends = [source.frames(*size, end - kept, end) for size in rest]
            encoded = run("picture of the clip", stages.encode_frames, ends)
            check_channels(parts, encoded[0], self.channels(parts)[0])
            starts.update(zip(rest, encoded, strict=True))
        if request.audio is None:
            length = continued_length(overlap, more + request.audio_length - 1)
        audio = audio[:, :, :length]
        result = {}
        for size, start in starts.items():
            video = start.new_zeros(*start.shape[:2], latent_frames(length), *start.shape[3:])
            latent = all_generated(video, audio.new_zeros(*audio.shape[:2], length))
            latent = keep_start(latent, start, audio[:, :, :kept])
            result[size] = keep_audio(latent, audio) if request.audio is not None else latent
        return result

    def finish(self, frames: Frames, waveform: Tensor | None) -> tuple[Frames, Tensor]:
        source, shared = self.source, self.kept + self.more
        if self.request.audio is not None:
            start, new = 0, whole_frames(self.request.audio)
        elif waveform is not None:
            start, new = shared * SAMPLES_PER_FRAME, waveform
        else:
            raise InputError("The continuation has no sound: its audio was neither given nor generated.")
        count = min(len(frames) - shared, (new.shape[1] - start) // SAMPLES_PER_FRAME)
        joined_frames = source.frames(frames.width, frames.height).followed_by(frames.part(shared, shared + count))
        return joined_frames, continued(source.waveform, new[:, : start + count * SAMPLES_PER_FRAME], start)

    def whole(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.source.latents is None:
            return None
        old_video, old_audio = self.source.latents
        if old_video.shape[3:] != video.shape[3:]:
            return None
        last, overlap, end = latent_frames(self.source.count), latent_frames(self.kept), self.source.count - self.more
        return (torch.cat([old_video[:, :, :last], video[:, :, overlap:].to(old_video)], 2),
                torch.cat([old_audio[:, :, :end], audio[:, :, self.kept :].to(old_audio)], 2))


def read_mask(mask: Mask, width: int, height: int) -> Tensor:
    """What of a picture of this size is made anew: fp32 [height, width], 1 there.

    mask: an image or its file, white where it is made anew, or a tensor [height, width], of any size, which is
    cropped as a picture is; or an ellipse. Raises InputError for a mask of nothing or of everything.
    """
    if isinstance(mask, tuple):
        return ellipse_mask(mask, width, height)
    if isinstance(mask, Tensor):
        found = mask.float().squeeze()
        if found.ndim != 2:
            raise InputError(f"mask has shape {tuple(mask.shape)}, expected [height, width].")
    else:
        found = torch.from_numpy(np.array(read_image(mask, "mask").convert("L"), dtype=np.float32) / 255)
    check_mask(found)
    return crop_mask(found, width, height)
