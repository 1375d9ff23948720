"""Whether there is a file to decode at all."""

import stat
from pathlib import Path

from ..errors import InputError


def check_readable(path: Path, what: str) -> None:
    """Say plainly that a file is missing, a folder, empty, or a download that went wrong.

    what: "image", "audio" or "video". Raises InputError.
    """
    article = "an" if what[0] in "aeiou" else "a"
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise InputError(f"{path}: is a folder, expected {article} {what} file.")
        if not stat.S_ISREG(kind):  # which might be waited for, or read, without end
            raise InputError(f"{path}: is a device or a pipe, expected {article} {what} file.")
        with path.open("rb") as file:
            head = file.read(64)
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: there is no such {what} file. Check the name.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}). Check its permissions.") from None
    except ValueError:  # a zero byte in the name
        raise InputError(f"{str(path)!r}: is not a possible name of {article} {what} file.") from None
    if not head:
        raise InputError(f"{path}: is empty. Give another {what} file.")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: is a Git-LFS pointer, not the {what}. Fetch it with 'git lfs pull'.")
