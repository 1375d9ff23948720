"""Words on a console of any encoding, and the exit codes of a command."""

import errno
import sys
import unicodedata
from contextlib import suppress
from enum import IntEnum

from ..errors import CheckpointError, InputError, LostRankError, is_out_of_memory

# What the system has run out of, or cannot do any more.
EXHAUSTED = {getattr(errno, name) for name in ("ENOSPC", "EFBIG", "EDQUOT", "EIO", "ENOMEM", "EMFILE", "ENFILE")
             if hasattr(errno, name)}
TURNING = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # turn the order of what follows


class Exit(IntEnum):
    """What became of a command."""

    DONE = 0
    PROBLEMS = 1  # that `inspect` found
    INPUT = 2  # the command, or a file that was given, cannot be used
    WEIGHTS = 3  # are missing, damaged, or of another kind
    MACHINE = 4  # has too little memory or space, or its disk fails
    INTERNAL = 70  # the program's own fault, as in sysexits.h
    INTERRUPTED = 130  # by Ctrl-C; 128 and its number after another signal


def exit_code(error: BaseException) -> Exit:
    """By the kind of an error, and of what led to it."""
    cause: BaseException | None = error
    while cause is not None:
        if is_out_of_memory(cause) or (isinstance(cause, OSError) and cause.errno in EXHAUSTED):
            return Exit.MACHINE
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, CheckpointError):
        return Exit.WEIGHTS
    if isinstance(error, LostRankError):
        return Exit.MACHINE
    return Exit.INPUT if isinstance(error, InputError | OSError) else Exit.INTERNAL


def plain(text: str) -> str:
    """A text whose characters no console obeys: names of files may hold any."""
    return "".join(character if character in "\n\t" or not _commands(character)
                   else character.encode("unicode_escape").decode() for character in text)


def _commands(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in TURNING


def print_anything() -> None:
    """Let standard output and errors show what their encoding does not have as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):  # none, closed, or put in the place of the usual ones
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
