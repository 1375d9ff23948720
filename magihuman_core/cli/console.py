"""Words on a console of any encoding, and the exit codes of a command."""

import errno
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any, TextIO

from ..errors import CheckpointError, InputError, LostRankError, is_out_of_memory, reader_is_gone

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


@contextmanager
def lasting_streams() -> Iterator[None]:
    """While the block runs, no standard output or error stream ends a command: the file is what it is run for.

    What an encoding does not have is shown as escapes. Where a reader, such as head, has seen enough, or a stream was
    closed from the beginning, what is said is lost.
    """
    usual = sys.stdout, sys.stderr
    for stream in usual:
        with suppress(AttributeError, ValueError, OSError):  # none, closed, or put in the place of the usual ones
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123  "nul" on Windows
        sys.stdout, sys.stderr = (Lasting(nowhere if stream is None else stream) for stream in usual)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = usual


class Lasting:
    """A text stream that goes on, into nothing, when its reader is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._lasting(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._lasting(self._stream.flush)

    def _lasting(self, act: Callable[..., Any], *arguments: str) -> None:
        try:
            act(*arguments)
        except OSError as error:
            if not reader_is_gone(error):
                raise
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  what waits in the buffer goes there, too
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
