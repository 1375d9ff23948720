"""Whether there is a file to decode at all."""

from pathlib import Path

from ..errors import InputError


def check_readable(path: Path, what: str) -> None:
    """Say plainly that a file is missing, a folder, empty, or a download that went wrong.

    what: "image", "audio" or "video". Raises InputError.
    """
    article = "an" if what[0] in "aeiou" else "a"
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected {article} {what} file.")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such {what} file. Check the name.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}). Check its permissions.") from None
    except ValueError:  # a zero byte in the name
        raise InputError(f"{str(path)!r}: is not a possible name of {article} {what} file.") from None
    if not head:
        raise InputError(f"{path}: is empty. Give another {what} file.")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: is a Git-LFS pointer, not the {what}. Fetch it with 'git lfs pull'.")
