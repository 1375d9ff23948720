"""What a clip is made of, as one text: where it is the same, so is the clip."""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, InputError
from ..options import change_inputs
from .jobs import Job, refuse

# Options that say where a clip goes and how a machine is to make it, not what it is.
HOW = ("out", "save_latents", "run", "method", "device", "resident_blocks", "stream_from", "fuse", "tile")
PIECE = 1 << 20


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's content. Raises OSError."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


class Contents:
    """Tells jobs apart by all that they are made of. What several jobs read is read once."""

    def __init__(self) -> None:
        from ...checkpoint.fingerprint import fingerprint
        from ...loading.folder import find_models

        self.digest, self.weights = cache(file_digest), cache(fingerprint)
        self.models = cache(lambda folder, parts: find_models(folder, dict(parts)))

    def check_models(self, file: str, jobs: Sequence[Job]) -> None:
        """Raise DetailedError where jobs of a file name models that are not there."""
        faults: dict[str, list[int]] = {}
        for job in jobs:
            try:
                self.models(job.arguments.models, tuple(job.arguments.part))
            except (InputError, CheckpointError) as error:
                faults.setdefault(str(error), []).append(job.line)
        refuse(file, faults)

    def identity(self, job: Job) -> str | None:
        """A text that is another one when an option, the content of a file or a weight is; None where one is missing.

        Of weights, which are large, size, time of change and first megabyte count.
        """
        arguments = job.arguments
        try:
            files = change_inputs(argparse.Namespace(**{**vars(arguments), "part": [], "lora": []}), self.digest)
            made_of = {**vars(arguments), **files, "models": self._weights(arguments), "part": None,
                       "lora": [(self.weights(file), strength) for file, strength in arguments.lora]}
        except (OSError, InputError, CheckpointError):
            return None  # the command itself will say it
        told = {name: value for name, value in made_of.items() if name not in HOW}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def _weights(self, arguments: argparse.Namespace) -> Mapping[str, Any]:
        """The weights of all parts that the job may use: which network, its options say."""
        from ...loading.folder import NETWORKS
        from ...recipes import RECIPES

        models = self.models(arguments.models, tuple(arguments.part))
        unused = {role for role in NETWORKS if not (arguments.upscale and RECIPES[role].super_resolution)}
        unused.discard(models.network(arguments.mode))
        return {part: [self.weights(path) for path in paths] for part, paths in models.found.items()
                if part not in unused}
