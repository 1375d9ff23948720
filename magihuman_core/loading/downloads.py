"""Where each part of the model can be downloaded, how large it is, and where ComfyUI looks for it.

downloads.json beside this file is the one list: README, the notes of the example workflows, `magihuman inspect --for`
and the node MagiHuman Check say what stands there. Nothing here goes to any address.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

EIGHT_BITS, ORIGINALS, ALWAYS = "8 bits", "originals", "always"
LIST = Path(__file__).with_name("downloads.json")


@dataclass(frozen=True)
class Download:
    """One entry of the list."""

    part: str  # see folder.PARTS
    set: str  # EIGHT_BITS or ORIGINALS, or ALWAYS where there is one way only
    format: str  # of the weights
    repository: str
    path: str  # in the repository: a file, or with a slash at its end (or empty) a folder
    folder: str  # below ComfyUI/models
    gb: float  # in GB, of 10^9 bytes
    site: str
    counted: bool = False  # the size is counted from the model's shapes, not read from the page
    gated: bool = False  # the page gives files only to those who accept its terms
    take: str = ""  # which files of a folder, in words; empty: all, or those of `names`
    names: tuple[str, ...] = ()  # of a folder's files, where they are known
    shards: int = 0  # files that a network is cut into

    @property
    def address(self) -> str:
        """The page in a browser: that of the folder."""
        folder = self.path.rpartition("/")[0]
        return f"{self.site}/{self.repository}" + (f"/tree/main/{folder}" if folder else "")

    @property
    def whole_folder(self) -> bool:
        return not self.path or self.path.endswith("/")

    @property
    def what(self) -> str:
        """What to take from the page, in words."""
        if not self.whole_folder:
            return PurePosixPath(self.path).name
        return f"{self.path}: {self.take or 'all files'}" if self.path else self.take

    @property
    def choice(self) -> str:
        """What the loader in ComfyUI then offers: a file, or a folder of shards with a slash at its end."""
        _, _, inner = self.folder.partition("/")
        if self.names:
            return f"{inner}/{self.names[0]}"
        if self.whole_folder:
            return inner + "/"
        return f"{inner}/{self.what}" if inner else self.what

    @property
    def files(self) -> list[dict[str, str]]:
        """Of each single file whose name is known: name below the folder of its kind, address, and that folder."""
        names = list(self.names)
        if self.shards:
            names = [f"model-{number:05d}-of-{self.shards:05d}.safetensors" for number in range(1, self.shards + 1)]
            names.append("model.safetensors.index.json")
        if not self.whole_folder:
            names = [self.what]
        kind, _, inner = self.folder.partition("/")
        source = self.path if self.whole_folder else self.path.removesuffix(self.what)
        return [{"name": f"{inner}/{name}" if inner else name, "directory": kind,
                 "url": f"{self.site}/{self.repository}/resolve/main/{source}{name}"} for name in names]

    @property
    def size(self) -> str:
        return f"{'about ' if self.counted else ''}{self.gb:g} GB"


@cache
def downloads() -> tuple[Download, ...]:
    """The whole list."""
    content = json.loads(LIST.read_text(encoding="utf-8"))
    return tuple(Download(**{**entry, "names": tuple(entry.get("names", ()))}, site=content["site"])
                 for entry in content["files"])


def download(part: str, set: str) -> Download:  # noqa: A002
    """The entry of a part in a set; KeyError where there is none."""
    for entry in downloads():
        if entry.part == part and entry.set in (set, ALWAYS):
            return entry
    raise KeyError(part)


def total_gb(entries: Iterable[Download]) -> int:
    """GB of several entries together, rounded."""
    return round(sum(entry.gb for entry in entries))
