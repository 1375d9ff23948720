"""Files that are there whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def temporary_name(path: Path) -> Path:
    """A new name in the same folder, so that renaming to path is one step and never copies."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


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
