"""The stages of a clip, and what share of the time each takes, as far as that can be known before."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ..sizes import PIXELS_PER_LATENT, PIXELS_PER_TOKEN, TEXT_TOKENS, decoded_frames, latent_frames
from .request import Pass, Request

# Work in tokens that go through the network once. What the makers of the model published of an H100 says that decoding
# 2,000 pixels takes about as long as one such token; the others are small beside these.
PIXELS = 2000
DEMO_PIXELS = 27  # the demo's network is small beside its decoder: measured on a CPU
SMALL = 2000


@runtime_checkable
class Watcher(Protocol):
    """A progress callback that also wants to know the stages."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...

    def plan(self, stages: Sequence[tuple[str, float]]) -> None:
        """The stages in their order, with their shares of the time in any unit."""

    def begin(self, stage: str) -> None:
        """A stage begins; it need not be one of those planned."""


def planned(request: Request, encoded: Sequence[str], generates_audio: bool, demo: bool) -> list[tuple[str, float]]:
    """The stages of a request, each with its share.

    encoded: the stages that encode what is given, in their order. demo: whether the demo's models carry it out.
    """
    stages = [(name, float(SMALL)) for name in ("text encoder", *encoded)]
    count = len(request.seeds)
    stages += [(pass_.name, count * _tokens(pass_, request.audio_length)) for pass_ in request.passes]
    width, height = (side // PIXELS_PER_LATENT for side in request.passes[-1].size)
    video = latent_frames(request.audio_length), height, width
    return stages + count * planned_decoding(video, generates_audio, demo)


def planned_decoding(video: Sequence[int], sound: bool, demo: bool) -> list[tuple[str, float]]:
    """The stages that make a clip of latents. video: their shape, [..., T, h, w]. sound: whether it is decoded, too."""
    frames, height, width = video[-3:]
    pixels = decoded_frames(frames) * height * width * PIXELS_PER_LATENT**2
    picture = [("picture decoder", pixels / (DEMO_PIXELS if demo else PIXELS))]
    return [("sound decoder", float(SMALL)), *picture] if sound else picture


def _tokens(pass_: Pass, audio: int) -> float:
    width, height = (side // PIXELS_PER_TOKEN for side in pass_.size)
    return pass_.steps * (2 if pass_.guidance else 1) * (width * height * latent_frames(audio) + audio + TEXT_TOKENS)
