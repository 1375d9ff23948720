"""The two ways in which what a user gave can be wrong, and the two in which machines can fail."""

import difflib
from collections.abc import Iterable
from errno import EINVAL, EPIPE

# What else than an OutOfMemoryError says: MPS and drivers; the CPU on Linux, on Windows; cuBLAS and cuDNN.
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED")

# Level of the log between INFO and WARNING: what people should read although nothing is wrong. INFO is for engineers.
TIP = 25


class InputError(ValueError):
    """An argument, prompt, image or audio cannot be used; the message names it and the remedy."""


class CheckpointError(ValueError):
    """A weight file is damaged, of the wrong kind, or incomplete; the message names it and the remedy."""


class LostRankError(RuntimeError):
    """One of several processes that make a clip together has ended, so that the others cannot go on."""


def shown(value: object) -> str:
    """A value for a message, whatever it is: on one line, and short."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:100]}..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: a known one that is like it, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f". Did you mean {close[0]}?" if close else ""


def reader_is_gone(error: OSError) -> bool:
    """Whether a pipe could not be written because nobody reads it any more; Windows has another number for that."""
    return error.errno in (EPIPE, EINVAL)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the system had no memory left.

    torch says so in many ways: of CUDA, ROCm and XPU by a class of its own, of MPS, libraries and the CPU by text.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
