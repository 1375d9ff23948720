"""What became of each clip: a manifest in the folder of the batch, written whole after each of them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...atomic import remove_leftovers, whole_file
from ...errors import InputError
from .contents import file_digest
from .jobs import MANIFEST, Job

KIND = "magihuman batch"


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    answer: str = ""  # what the command said of the clip
    error: str = ""  # a sentence; empty: the clip is there
    code: int = 0  # as the command line's exit code
    digest: str = ""  # SHA-256 of the clip
    seconds: float = 0.0
    host: str = ""  # machine that made it
    attempts: int = 1
    remarks: list[str] = field(default_factory=list)  # warnings and tips
    trace: str = field(default="", repr=False)  # where an error arose


class Records:
    """The manifest: for each clip's name the identity of its job and its outcome. Clips of other jobs files stay in."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError for a folder that cannot be used, or whose manifest is another program's."""
        self.path = folder / MANIFEST
        self.clips: dict[str, dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{folder}: cannot be used ({getattr(error, 'strerror', None) or error}). Choose another "
                             "folder (--out).") from None
        if text:
            self.clips = _read(text, self.path)

    def made(self, job: Job, identity: str | None) -> Outcome | None:
        """The outcome of a run before, where the clip of this very job is there, bit by bit as it was written."""
        record = self.clips.get(job.name, {})
        if identity is None or record.get("job") != identity or record.get("error"):
            return None
        try:
            if file_digest(job.out) != record.get("digest") or not all(path.is_file() for path in job.outputs):
                return None
        except OSError:
            return None
        return Outcome(**{name: value for name, value in record.items() if name in Outcome.__dataclass_fields__})

    def write(self, job: Job, identity: str | None, outcome: Outcome) -> None:
        """Note what became of a job. Raises OSError."""
        record = {"line": job.line, "job": identity, **asdict(outcome)}
        del record["trace"]
        self.clips[job.name] = record
        content = json.dumps({"kind": KIND, "clips": self.clips}, indent=1)
        with whole_file(self.path) as file:
            file.write(content.encode())


def _read(text: str, path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        found = None
    clips = found.get("clips") if isinstance(found, Mapping) and found.get("kind") == KIND else None
    if not isinstance(clips, dict) or not all(isinstance(record, dict) for record in clips.values()):
        raise InputError(f"{path}: is not the manifest of a batch. Move it away, or choose another folder (--out).")
    return clips
