"""Files that are there whole or not at all, and never in place of one that is read."""

from __future__ import annotations

import os
import platform
import secrets
import stat
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import BinaryIO

from .errors import InputError

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

WINDOWS = os.name == "nt"
# Devices of Windows, with any ending and in any folder; what a name cannot hold there.
DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$",
           *(port + number for port in ("com", "lpt") for number in "0123456789\u00b9\u00b2\u00b3")}
FORBIDDEN = '<>:"|?*'

RESTING = 60  # seconds after which a file that nobody writes is a leftover, where there are no locks


def temporary_name(path: Path) -> Path:
    """A new name in the same folder, so that renaming to path is one step and never copies.

    It is short, however long the other is, and tells the machine, so that what a killed process left is known.
    """
    return path.with_name(f"{_prefix()}{secrets.token_hex(4)}.part")


def _prefix() -> str:
    return f".magihuman-{zlib.crc32(platform.node().encode(errors='replace')):08x}-"


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that processes on this machine left when they were killed, and no living one holds."""
    with suppress(OSError):
        for file in folder.glob(f"{_prefix()}*.part"):
            with suppress(OSError):
                _remove_unless_held(file)


def _remove_unless_held(file: Path) -> None:
    if fcntl is None:  # no locks: what is open cannot be removed there, and what was closed just now waits for its name
        if time.time() - file.stat().st_mtime > RESTING:
            file.unlink()
        return
    with file.open("rb") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which fails while it is being written
        file.unlink()


def _begin(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside path, which nobody takes for a leftover."""
    while True:
        temporary = temporary_name(path)
        file = temporary.open("xb")
        with suppress(OSError):  # a file system without locks, where nothing is removed either
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)  # once whoever looks at it just now is done
        with suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), temporary.stat()):
                return temporary, file
        file.close()  # it was removed before the lock was there


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that appears as path, in place of what was there, when the block ends well.

    Until then it has a temporary name in the same folder. Any error in the block, or Ctrl-C, removes it and
    leaves path as it was. A file that is replaced hands its permissions on; of a link the file it leads to is replaced.
    Raises OSError where the system refuses.
    """
    path = path.resolve()
    temporary, file = _begin(path)
    try:
        with file:
            remove_leftovers(path.parent)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:
                _rename(temporary, path)  # while it is locked; Windows renames closed files only
        if fcntl is None:
            _rename(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _rename(temporary: Path, path: Path) -> None:
    with suppress(OSError):  # nothing is there yet
        temporary.chmod(stat.S_IMODE(path.stat().st_mode))
    try:
        temporary.replace(path)
    except PermissionError:  # on Windows, while another program has the old file open
        kept = _free_name(path)
        temporary.replace(kept)
        raise InputError(f"{path}: is in use by another program and cannot be replaced. What was made is kept as "
                         f"{kept.name}.") from None


def _free_name(path: Path) -> Path:
    number = 1
    while (kept := path.with_stem(f"{path.stem}_{number}")).exists():
        number += 1
    return kept


def check_not_input(target: str | Path, inputs: Iterable[str | Path | None]) -> None:
    """Raise InputError where writing a file would replace one that is read, under whichever of its names.

    inputs: files; None and what is not there are passed over. Links, symbolic or hard, are the file they lead to.
    """
    for given in inputs:
        same = False
        with suppress(OSError, ValueError):  # one of the two is not there, or no name that can be
            same = given is not None and Path(target).samefile(given)
        if same:
            raise InputError(f"{target}: is the source itself, or a link to it. Give another name.")


def check_place(path: Path, what: str) -> None:
    """Make sure, before long work starts, that a file can be written there; its folder is made.

    what: the file is, in a sentence. Raises InputError.
    """
    try:
        found = _status(path)
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise InputError(f"{path}: is a folder. Give the name of a file.")
        if found is not None and not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path}: is a device or a pipe, where the {what} is a file. Give another name.")
        if found is not None and not os.access(path, os.W_OK):
            raise InputError(f"{path}: is there already, and protected from writing. Give another name.")
        if WINDOWS:
            _check_windows_name(path)
        temporary = temporary_name(path.resolve())
        temporary.parent.mkdir(parents=True, exist_ok=True)
        if len(path.name) > len(temporary.name):  # so that a limit on the length of paths is met now
            temporary = temporary.with_name(temporary.name.ljust(len(path.name), "_"))
        temporary.touch(exist_ok=False)
        temporary.unlink(missing_ok=True)
    except InputError:
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be written ({reason}). Choose another folder or name.") from None
    except ValueError:
        raise InputError(f"{str(path)!r}: is not a possible name of a file. Give another one.") from None
    remove_leftovers(temporary.parent)


def _check_windows_name(path: PurePath) -> None:
    """Raise InputError for what Windows takes at first and gives another meaning: a device, a stream, no last dot."""
    for part in path.parts[1 if path.anchor else 0:]:
        device = part.split(".")[0].rstrip(" ").lower() in DEVICES
        if device or set(part) & set(FORBIDDEN) or (part not in (".", "..") and part[-1] in ". "):
            raise InputError(f"{path}: {part!r} is no name on Windows. Choose another.")


def _status(path: Path) -> os.stat_result | None:
    """Of a file or what a link leads to; None where there is none. Raises OSError, also for a name that is too long."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
