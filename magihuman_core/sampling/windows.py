"""Clips of any length from a network that knows a few seconds: overlapping windows, blended in every step.

A window of T latent frames that starts at latent frame b is a clip of its own to the network: its positions count from
0, and it hears 4T - 1 audio latents, those from 4b on. In every step each window is denoised by itself. The estimates
of the clean clip are averaged where windows overlap, with weights that rise and fall across the overlap. So all windows
agree before the next step, and no seam is left.

Frozen content (a first image, driving audio, the end of another clip, whatever a mask keeps) is cut by the same window:
each sees what lies within it. A window of which all is to be made sees one given latent frame besides, the last one
before it, which for a clip from a picture is that picture. It stands in the place of the window's own first frame,
which the window before makes. Else little would tell a window half a minute later what the person of the picture looks
like, for overlaps carry that on by one window in a step.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, shown
from ..model.dit import MagiHumanDiT
from ..recipes import Guidance
from ..sizes import AUDIO_PER_FRAME, FPS, MAX_SECONDS, audio_length, full_audio, latent_frames
from .denoiser import JointDenoiser, later_guidance
from .frozen import Frozen, apply_frozen
from .latents import Shapes, pack_latents, unpack_latents

OVERLAP = 5  # latent frames that neighbouring windows share where nobody says otherwise

Texts = tuple[Tensor, Tensor | None]  # [1, n, d] of the prompt, and of the negative prompt where there is one


@dataclass(frozen=True)
class Window:
    """A part of a clip: latent frames `start` to `start + frames`, and the audio latents that go with them.

    heard: how many audio latents the network is given for it. At the clip's end there may be up to two fewer, or one
    more: the last is repeated or left out then, since a network that knows windows of one length loses the lips there.
    anchor: the clip's latent frame that the network sees in the place of the window's own first one; None: its own.
    """

    start: int
    frames: int
    audio: slice
    heard: int
    anchor: int | None = None

    @property
    def video(self) -> slice:
        return slice(self.start, self.start + self.frames)

    def cut_video(self, stream: Tensor) -> Tensor:
        """The window's part of [B, C, T, H, W]; a mask that broadcasts along time stays as it is."""
        return stream if stream.shape[2] == 1 else stream[:, :, self.video]

    def seen_video(self, stream: Tensor, given: Tensor) -> Tensor:
        """What the network sees of [B, C, T, H, W]. given: the clean latents of a whole clip, where they are given."""
        part = self.cut_video(stream)
        if self.anchor is None:
            return part
        anchor = given[:, :, self.anchor : self.anchor + 1].to(part)
        return torch.cat([anchor.expand_as(part[:, :, :1]), part[:, :, 1:]], 2)

    def cut_audio(self, stream: Tensor) -> Tensor:
        """The window's part of [B, a, A]; a mask that broadcasts along time stays as it is."""
        return stream if stream.shape[2] == 1 else fit_audio(stream[:, :, self.audio], self.heard)

    def weights(self, overlap: int) -> tuple[Tensor, Tensor]:
        """How much the window's estimate counts, of each of its latent frames and audio latents."""
        count = self.audio.stop - self.audio.start
        video = _ramps(self.frames, max(overlap - 1, 1))
        if self.anchor is not None:
            video[0] = 0
        return video, _ramps(count, max(overlap - 1, 1) * AUDIO_PER_FRAME)


Evaluate = Callable[..., tuple[Tensor, Tensor]]  # of a window
EachWindow = Callable[[Evaluate, Sequence[Window]], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Windows:
    """The windows of one clip, in order; each but the last overlaps the next by `overlap` latent frames or more."""

    parts: Sequence[Window]
    overlap: int

    def anchored(self, mask: Tensor) -> "Windows":
        """These, where each of which all is to be made sees the last given latent frame before it, if there is one.

        mask: of the video, [B, 1, T, H, W] or [B, 1, 1, H, W] for all frames, 0 where it is given. Where neighbours
        share one latent frame only, all stay as they are: it is the one in whose place the other would stand, and
        nothing would be carried on.
        """
        mask = mask.expand(-1, -1, self.parts[-1].video.stop, -1, -1)
        given = (mask == 0).all(0).all(0).flatten(1).all(1).tolist()  # of each latent frame
        if self.overlap < 2 or not any(given):
            return self

        def seen(part: Window) -> Window:
            before = [frame for frame in range(part.start) if given[frame]]
            return replace(part, anchor=before[-1]) if before and bool(part.cut_video(mask).all()) else part

        return replace(self, parts=[seen(part) for part in self.parts])

    def blend(self, evaluate: Evaluate, each: EachWindow = map) -> tuple[Tensor, Tensor]:
        """Evaluate each window and average where they overlap -> (video [B, C, T, H, W], audio [B, a, A]).

        evaluate(window) gives the window's own video and audio. One window's result is held at a time. each: as map, to
        share the windows between devices.
        """
        if len(self.parts) == 1:
            [whole] = each(evaluate, self.parts)
            return whole
        video = audio = torch.empty(0)
        frames, length = self.parts[-1].video.stop, self.parts[-1].audio.stop
        of_video, of_audio = torch.zeros(frames, 1, 1), torch.zeros(length)
        for window, (part_video, part_audio) in zip(self.parts, each(evaluate, self.parts), strict=True):
            part_audio = fit_audio(part_audio, window.audio.stop - window.audio.start)
            if window is self.parts[0]:
                video = part_video.new_zeros(*part_video.shape[:2], frames, *part_video.shape[3:])
                audio = part_audio.new_zeros(*part_audio.shape[:2], length)
                of_video, of_audio = of_video.to(video.device), of_audio.to(audio.device)
            weight_video, weight_audio = window.weights(self.overlap)
            weight_video = weight_video[:, None, None].to(video.device)
            weight_audio = weight_audio.to(audio.device)
            video[:, :, window.video] += weight_video * part_video
            audio[:, :, window.audio] += weight_audio * part_audio
            of_video[window.video] += weight_video
            of_audio[window.audio] += weight_audio
        return video.div_(of_video), audio.div_(of_audio)


def plan_windows(audio_length: int, window: int, overlap: int = OVERLAP) -> Windows:
    """Windows over a clip of so many audio latents. window, overlap: in latent frames.

    A clip that is no longer than a window is one window, the whole of it. The last window is pushed back to end with
    the clip, so that every window but a single short one is full. Raises InputError for an overlap that does not fit.
    """
    check_window(window, overlap)
    frames = latent_frames(audio_length)
    if frames <= window:
        return Windows([Window(0, frames, slice(0, audio_length), audio_length)], overlap)
    starts = [*range(0, frames - window, window - overlap), frames - window]
    return Windows([_window(start, window, audio_length) for start in starts], overlap)


def window_frames(seconds: float) -> int:
    """Latent frames of a window of so many seconds, such as 13 of 2 s."""
    try:
        return latent_frames(audio_length(seconds))
    except InputError:
        raise InputError(f"window is {shown(seconds)} seconds, expected a length such as 5.") from None


def shared_frames(seconds: float) -> int:
    """Latent frames of an overlap of so many seconds, such as 5 of 0.8 s."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_SECONDS:
        raise InputError(f"overlap is {shown(seconds)} seconds, expected a length such as 0.8.")
    return round(seconds * FPS / AUDIO_PER_FRAME)


def fit_audio(audio: Tensor, length: int) -> Tensor:
    """So many audio latents [B, a, length]: the first ones, or the last one repeated."""
    missing = length - audio.shape[2]
    if missing <= 0:
        return audio[:, :, :length]
    return torch.cat([audio, audio[:, :, -1:].expand(-1, -1, missing)], 2)


def check_window(window: int, overlap: int) -> None:
    """Raise InputError for windows that cannot cover a clip. window, overlap: in latent frames."""
    if not 1 <= overlap < window:
        raise InputError(f"Windows of {window} latent frames cannot overlap by {overlap}: give an overlap of at least "
                         "one latent frame (0.16 s), and a window that is longer than it.")


def _window(start: int, frames: int, audio_length: int) -> Window:
    first, heard = AUDIO_PER_FRAME * start, full_audio(frames)
    end = audio_length if start + frames == latent_frames(audio_length) else first + heard
    return Window(start, frames, slice(first, end), heard)


def _ramps(count: int, rise: int) -> Tensor:
    """1, 2, 3, ... rise, rise, ... 3, 2, 1 of so many numbers; fp32."""
    up = torch.arange(1, count + 1, dtype=torch.float32)
    return torch.minimum(up, up.flip(0)).clamp(max=rise)


class WindowedDenoiser:
    """Callable as a solver's model over a clip of any length: model(x [B, 1, n], sigma) -> x0 of the packed streams.

    As JointDenoiser, whose arguments these are, window by window. x may lie in main memory for the whole clip: only
    one window at a time goes to `device`, where the network is. text_for(window) gives the texts of a window, and
    on_window is called after each of them. each(evaluate, windows): as map, to share the windows between devices;
    evaluate(window, dit) takes another network than the usual one. anchor: see Windows.anchored.
    """

    def __init__(self, dit: MagiHumanDiT, shapes: Shapes, windows: Windows, text_for: Callable[[Window], Texts],
                 guidance: Guidance | None = None, frozen_video: Frozen | None = None,
                 frozen_audio: Frozen | None = None, *, device: torch.device | str | None = None,
                 on_window: Callable[[], None] | None = None, each: EachWindow = map, anchor: bool = False,
                 **forward: Any) -> None:
        self.dit, self.shapes, self.text_for = dit, shapes, text_for
        self.windows = windows.anchored(frozen_video[1]) if anchor and frozen_video is not None else windows
        self.guidance = guidance or Guidance()
        self.frozen_video, self.frozen_audio = frozen_video, frozen_audio
        self.device, self.on_window, self.each, self.forward = device, on_window, each, forward

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        video, audio = unpack_latents(x, self.shapes)
        device = x.device if self.device is None else torch.device(self.device)
        given = video if self.frozen_video is None else self.frozen_video[0]

        def evaluate(window: Window, dit: MagiHumanDiT = self.dit) -> tuple[Tensor, Tensor]:
            frozen_video = _cut(self.frozen_video, window.cut_video)
            frozen_audio = _cut(self.frozen_audio, window.cut_audio)
            if _all_kept(frozen_video) and _all_kept(frozen_audio):
                return window.cut_video(video), window.cut_audio(audio)  # what is kept is put in below
            part, shapes = pack_latents(window.seen_video(video, given), window.cut_audio(audio))
            text, negative = self.text_for(window)
            model = JointDenoiser(
                dit, shapes, text, negative, later_guidance(self.guidance, window.start), frozen_video,
                frozen_audio, **self.forward)
            x0 = model(part.to(device), sigma.to(device)).to(x.device)
            return unpack_latents(x0, shapes)

        x0_video, x0_audio = self.windows.blend(evaluate, self._counted)
        # Averaging equal values may turn a last bit: what is frozen stays exactly as it was given.
        return pack_latents(apply_frozen(x0_video, self.frozen_video), apply_frozen(x0_audio, self.frozen_audio))[0]

    def _counted(self, evaluate: Evaluate, windows: Sequence[Window]) -> Iterator[tuple[Tensor, Tensor]]:
        for estimate in self.each(evaluate, windows):
            if self.on_window is not None:
                self.on_window()
            yield estimate


def _cut(frozen: Frozen | None, cut: Callable[[Tensor], Tensor]) -> Frozen | None:
    return None if frozen is None else (cut(frozen[0]), cut(frozen[1]))


def _all_kept(frozen: Frozen | None) -> bool:
    return frozen is not None and not bool(frozen[1].any())
