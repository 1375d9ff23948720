"""Files that are there whole or not at all."""

import glob
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import InputError


def temporary_name(path: Path) -> Path:
    """A new name in the same folder, so that renaming to path is one step and never copies."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def remove_leftovers(path: Path) -> None:
    """Remove what a process that was killed left of writing path."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        left.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that appears as path, in place of what was there, when the block ends well.

    Until then it has a temporary name in the same folder. Any error in the block, or Ctrl-C, removes it and
    leaves path as it was. Raises OSError where the system refuses.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_not_input(target: str | Path, inputs: Iterable[str | Path | None]) -> None:
    """Raise InputError where writing a file would replace one that is read, under whichever of its names.

    inputs: files; None and what is not there are passed over. Links, symbolic or hard, are the file they lead to.
    """
    for given in inputs:
        same = False
        with suppress(OSError):  # one of the two is not there
            same = given is not None and Path(target).samefile(given)
        if same:
            raise InputError(f"{target}: is the source itself, or a link to it. Give another name.")
