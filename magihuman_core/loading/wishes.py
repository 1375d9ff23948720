"""What somebody needs for the clip they have in mind: the parts, those that are there, and where the others are.

A wish is a few words such as "picture voice 540p".
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, did_you_mean
from ..recipes import BASE, DISTILLED, UPSCALERS, Recipe, upscaled_size
from .downloads import EIGHT_BITS, ORIGINALS, Download, download, total_gb
from .folder import PARTS, ModelFolder

# Word -> what it asks for. Words of the first group are there for people and need no part of their own.
WORDS = {
    **dict.fromkeys(("text", "prompt", "distilled", "upright", "wide", "video", "clip"), ""),
    **dict.fromkeys(("voice", "audio", "recording", "sound", "speech"), "voice"),
    **dict.fromkeys(("picture", "image", "photo", "photograph", "extend", "dub", "retake", "keyframes"), "picture"),
    **dict.fromkeys(("540p", "540"), "540p"), **dict.fromkeys(("1080p", "1080"), "1080p"),
    "base": "base",
}
FILLING = {"a", "an", "and", "my", "own", "with", "the", "in", "at", "of", "for", "to", "from", "plus"}


@dataclass(frozen=True)
class Wish:
    """A clip that somebody has in mind."""

    picture: bool = False
    voice: bool = False
    base: bool = False
    upright: bool = False
    upscale: str | None = None  # "540p" or "1080p"

    @property
    def parts(self) -> list[str]:
        """The parts that it needs, see folder.PARTS."""
        found = ["base" if self.base else "distilled"]
        if self.upscale:
            found.append(UPSCALERS[self.upscale].role)
        found += ["text_encoder", "audio_vae", "turbo_vae"]
        return [*found, "video_vae"] if self.picture else found

    @property
    def recipes(self) -> list[Recipe]:
        """Of the networks that make it, in their order."""
        return [BASE if self.base else DISTILLED, *([UPSCALERS[self.upscale]] if self.upscale else [])]

    def size(self, recipe: Recipe) -> tuple[int, int]:
        """Width and height of a network's clip in pixels."""
        base = (BASE.height, BASE.width) if self.upright else (BASE.width, BASE.height)
        return upscaled_size(*base, self.upscale) if recipe.super_resolution and self.upscale else base

    @property
    def template(self) -> str:
        """The example workflow that makes it, or comes closest."""
        if self.base:
            return "base_full_cfg"
        if self.voice and self.picture:
            return "lip_sync_upright" if self.upright else f"lip_sync_{self.upscale}" if (
                self.upscale == "540p") else "lip_sync"
        return f"picture_to_clip_{self.upscale}" if self.upscale else "picture_to_clip" if self.picture else (
            "text_to_clip")

    def __str__(self) -> str:
        words = ["picture" if self.picture else "text", "voice" if self.voice else "", self.upscale or "",
                 "upright" if self.upright else "", "base" if self.base else ""]
        return " ".join(filter(None, words))


def parse_wish(text: str) -> Wish:
    """A wish from its words. Raises InputError for words that it does not know."""
    found = set()
    for word in re.findall(r"[\w:]+", text.lower()):
        if word in FILLING:
            continue
        if word not in WORDS:
            raise InputError(f"{word!r} is not a word that is known here; known are text, picture, voice, 540p, 1080p, "
                             f"upright, extend, base{did_you_mean(word, WORDS) or '.'}")
        found |= {WORDS[word], word}
    if {"540p", "1080p"} <= found:
        raise InputError("A clip is made in 540p or in 1080p. Leave one of them out.")
    return Wish("picture" in found, "voice" in found, "base" in found, "upright" in found,
                next((name for name in UPSCALERS if name in found), None))


@dataclass(frozen=True)
class Need:
    """A part that a wish needs."""

    part: str
    found: tuple[Path, ...]  # where it lies; empty: it is missing
    small: Download  # the file in 8 bits, where there is one
    original: Download

    @property
    def name(self) -> str:
        return PARTS[self.part]

    @property
    def sources(self) -> list[Download]:
        return [self.small] if self.small == self.original else [self.small, self.original]


def look(models: ModelFolder | None, parts: Iterable[str]) -> list[Need]:
    """Each of these parts, and whether a folder has it; models: None where there is no folder."""
    found = {} if models is None else models.found
    return [Need(part, tuple(found.get(part, ())), download(part, EIGHT_BITS), download(part, ORIGINALS))
            for part in parts]


def missing_in_words(needs: Iterable[Need], below: str = "ComfyUI/models") -> Iterator[str]:
    """Lines that say of each missing part what to download, from where, how large it is, and where it goes."""
    absent = [need for need in needs if not need.found]
    if not absent:
        return
    total = total_gb(need.small for need in absent)
    yield f"Missing, about {total} GB in all. Folders are below {below}."
    for need in absent:
        yield f"  {need.name}"
        for number, source in enumerate(need.sources):
            kind = "the original" if number else source.set
            kind = "" if len(need.sources) == 1 else f" ({kind}, {source.format})"
            terms = "; first accept the terms on that page" if source.gated else ""
            yield f"    {'or ' if number else ''}{source.size}{kind}: {source.address}{terms}"
            yield f"      take {source.what}; put it into {source.folder}"
