"""Which file of a folder is which part of the model.

What a file is, is told by its tensors, so names and sub-folders are free. Only the role of a network leaves
no trace in it: that comes from the name of its file or folder, or from its metadata. A folder as downloaded:

    base/ or distill/         the network, in shards with an index or in one file
    540p_sr/, 1080p_sr/       super-resolution networks, where wanted
    turbo_vae/                the fast video decoder and its JSON
    vae/                      the Wan2.2 video VAE: for a reference picture, and as decoder without turbo_vae
    audio_vae/                Stable Audio Open's model.safetensors
    text_encoder/             T5Gemma-9B-UL2 with tokenizer.json
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..checkpoint.header import file_mode
from ..checkpoint.shards import sharded
from ..checkpoint.weight_files import DEPTH, REFUSED, is_file, suffix, walk
from ..errors import CheckpointError, InputError, is_out_of_memory, shown
from ..recipes import RECIPES
from ..weights.open import open_checkpoint
from ..weights.recognize import FOREIGN, Recognized, recognize, require_kind
from ..weights.roles import find_role

log = logging.getLogger(__name__)

DEMO = Path(__file__).resolve().parents[1] / "demo"
NETWORKS = tuple(RECIPES)  # a network is the part that its role names
# Name of a part -> what it is, in a sentence.
PARTS = {
    "base": "the base network",
    "distilled": "the distilled network",
    "sr_540p": "the 540p super-resolution network",
    "sr_1080p": "the 1080p super-resolution network",
    "turbo_vae": "the Turbo VAE",
    "video_vae": "the Wan2.2 video VAE",
    "audio_vae": "the audio VAE (Stable Audio Open's)",
    "text_encoder": "the text encoder (T5Gemma-9B-UL2)",
    "tokenizer": "the text encoder's tokenizer.json",
}
# What names of unreadable files tell of them.
HINTS = {"turbo_vae": ("turbo",), "video_vae": ("wan", "vae/"), "audio_vae": ("audio",), "text_encoder": ("text", "t5")}


class MissingPartsError(CheckpointError):
    """Parts that a clip needs and a folder does not have; `parts` names them, `path` the folder."""

    def __init__(self, models: "ModelFolder", parts: Sequence[str], what: str | None = None,
                 purpose: str | None = None) -> None:
        path = models.path
        names = [PARTS[part] for part in parts] if what is None else [what]
        joined = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        why = f", needed for {purpose}" if purpose else ""
        verb = "is" if len(names) == 1 else "are"
        it = "it" if len(names) == 1 else "them"
        super().__init__(f"{path}: {joined} {verb} missing{why}. Put {it} into this folder, or name {it} with --part "
                         f"{parts[0]}=FILE.{models.not_searched}")
        self.path, self.parts = path, tuple(parts)


class ModelFolder(Mapping):
    """Parts and where they lie: models["distilled"] is a path."""

    def __init__(self, path: Path, found: Mapping[str, list[Path]], problems: Mapping[Path, str],
                 unsearched: Sequence[Path] = ()) -> None:
        self.path = path
        self.found = {part: paths for part, paths in found.items() if paths}
        self.problems = problems  # files that look like weights but are of no use, and why
        self.unsearched = unsearched  # folders that lie too deep

    def __getitem__(self, part: str) -> Path:
        """The file or folder of a part. Raises InputError where there are several."""
        paths = self.found[part]
        if len(paths) > 1:
            names = " and ".join(str(path) for path in paths[:3])
            raise InputError(f"{self.path}: {PARTS[part]} is there {len(paths)} times: {names}. "
                             f"Choose one with --part {part}=FILE.")
        return paths[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    @property
    def not_searched(self) -> str:
        """The sentence for where something is missing: that it may lie too deep."""
        return "" if not self.unsearched else (
            f" Only {DEPTH} folders below that one are searched, and not {self.unsearched[0]}"
            + (f" and {len(self.unsearched) - 1} more." if len(self.unsearched) > 1 else "."))

    @property
    def is_demo(self) -> bool:
        """Whether these are the built-in demo's own networks."""
        return self.path == DEMO

    def require_all(self, parts: Mapping[str, str]) -> None:
        """Raise MissingPartsError unless all are there, or the fault of a file that may be one of them.

        parts: part -> what it is needed for.
        """
        missing = [part for part in parts if part not in self.found]
        for part in missing:
            self._raise_damaged(part)
        for part in set(parts) - set(missing):
            self[part]
        if len(missing) == 1:
            self.require(missing[0], parts[missing[0]])
        if missing:
            raise MissingPartsError(self, missing)

    def require(self, part: str, purpose: str, what: str | None = None) -> str:
        """part, if it is there once. Else an error says what is missing and for what."""
        if part in self.found:
            self[part]
            return part
        self._raise_damaged(part)
        raise MissingPartsError(self, [part], what, purpose)

    def _raise_damaged(self, part: str) -> None:
        """A file that could not be read may well be the missing part: its own fault is the better answer."""
        for path, problem in self.problems.items():
            if self._may_be(part, path, problem):
                raise CheckpointError(problem)

    def _may_be(self, part: str, path: Path, problem: str) -> bool:
        if part in NETWORKS:
            return "network" in problem or find_role(path, {}) in ("base", "distilled", part)
        name = path.relative_to(self.path).as_posix().lower()
        return any(hint in name for hint in HINTS[part])

    def network(self, mode: str | None) -> str:
        """The part that makes the base clip: mode, or whichever is there, the faster one first."""
        if mode is not None:
            if mode not in ("base", "distilled"):
                raise InputError(f"mode is {mode!r}, expected base or distilled.")
            return self.require(mode, f"mode {mode}")
        if "base" in self.found and "distilled" not in self.found:
            return self.require("base", "making a clip")
        return self.require("distilled", "making a clip", "a distilled or base network")


def find_models(path: str | Path, parts: Mapping[str, str | Path] | None = None) -> ModelFolder:
    """Search a folder, or the built-in "demo", for all parts.

    parts: paths given by name (see PARTS), which win over what the folder holds. Only headers are read.
    Raises InputError when it is not a folder or a name is unknown; a part that is missing or unreadable is
    an error only when it is asked for.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"The folder of models is {type(path).__name__}, expected a path, or demo.")
    folder = _demo_folder() if str(path) == "demo" else Path(path)
    try:
        folder.stat()
    except (OSError, ValueError) as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{shown(str(folder))}: cannot be a folder of models ({reason}). Check the name."
                             ) from None
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise InputError(f"{folder}: {what}; expected the folder that holds the models.")
    found: dict[str, list[Path]] = {part: [] for part in PARTS}
    problems: dict[Path, str] = {}
    unsearched: list[Path] = []
    for candidate in _candidates(folder, problems, unsearched):
        try:
            # Only the Turbo VAE comes as a training checkpoint; no other pickle is opened.
            checkpoint = open_checkpoint(candidate, allow_pickle_checkpoint=suffix(candidate) == ".ckpt")
            part = _part(candidate, recognize(checkpoint))
        except (CheckpointError, InputError) as error:
            problems[candidate] = str(error)
            continue
        except Exception as error:  # a fault of ours: one file does not spoil a folder
            if is_out_of_memory(error):
                raise
            log.debug("", exc_info=True)
            problems[candidate] = f"{candidate}: cannot be examined (internal error: {type(error).__name__}: {error})."
            continue
        if part is not None:
            log.debug("%s: %s", candidate, PARTS[part])
            found[part].append(candidate)
    tokenizers = (folder / "tokenizer.json", folder / "tokenizer" / "tokenizer.json")
    found["tokenizer"] = [path for path in tokenizers if is_file(path)][:1]
    for part, given in (parts or {}).items():
        if part not in PARTS:
            raise InputError(f"There is no part {part!r}, expected one of {', '.join(PARTS)}.")
        if not file_mode(Path(given)):
            raise InputError(f"{given}: there is no such file or folder for {PARTS[part]}. Check the name.")
        if part != "tokenizer":
            checkpoint = open_checkpoint(given, allow_pickle_checkpoint=part == "turbo_vae")
            require_kind(checkpoint, "network" if part in NETWORKS else part)
        found[part] = [Path(given)]
    for candidate, problem in problems.items():
        if suffix(candidate) not in REFUSED:
            log.warning("Not used: %s", problem)
    return ModelFolder(folder, found, problems, unsearched)


def _demo_folder() -> Path:
    if not any(DEMO.glob("*")):
        raise InputError("The built-in demo model is not part of this installation. Give a folder of models.")
    return DEMO


def _candidates(folder: Path, problems: dict[Path, str], unsearched: list[Path]) -> Iterator[Path]:
    """What of a folder and those below it may hold weights: files, and a folder where it is one sharded checkpoint.

    What cannot be read is noted in problems, folders that lie too deep in unsearched.
    """
    named: set[Path] = set()
    for found in walk(folder, DEPTH):
        if isinstance(found, OSError):
            problems[Path(found.filename)] = f"{found.filename}: cannot be read ({found.strerror})."
            continue
        unsearched += found.unsearched
        sets = sharded(found, named)
        yield from [found.folder] if len(sets) == len(found.indexes) == 1 else sets
        yield from (path for path in found.single if path not in named)


def _part(path: Path, found: Recognized) -> str | None:
    if found.kind == "network":
        if found.role is None:
            raise CheckpointError(f"{path}: is a network of unknown role. Put it into a folder named base, "
                                  "distill, 540p_sr or 1080p_sr, or say it, as in --part distilled=FILE.")
        return found.role
    if found.kind == "unknown" and found.quantization in [name for _, name in FOREIGN]:
        raise CheckpointError(f"{path}: is {found.what}.")
    return found.kind if found.kind in PARTS else None
