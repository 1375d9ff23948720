"""What a user is told of an error."""

from collections.abc import Iterator

from ..errors import CheckpointError, InputError, LostRankError, is_out_of_memory
from .version import version


class DetailedError(InputError):
    """An error with more to say than a sentence: lines that stand before it."""

    def __init__(self, message: str, lines: list[str]) -> None:
        super().__init__(message)
        self.lines = lines


def details(error: Exception) -> Iterator[str]:
    """What is said before the sentence: of missing parts, where they can be had."""
    if isinstance(error, DetailedError):
        yield from error.lines
    if parts := getattr(error, "parts", ()):
        from ..loading.wishes import look, missing_in_words

        yield from missing_in_words(look(None, parts))


def explain(error: Exception) -> str:
    """A sentence for the user."""
    if isinstance(error, InputError | CheckpointError):
        return str(error)
    if is_out_of_memory(error):
        return ("there is not enough memory. Lower, in this order: --tile where the picture was being decoded (--save-"
                "latents keeps what is made, for magihuman decode); else --dtype fp8, then --resident-blocks, then the "
                "size (--upscale, --width, --height), then --seconds.")
    if isinstance(error, LostRankError):
        told = str(error) or "Another process of this run has ended."
        return f"{told} So the clip cannot be made. Was it stopped, by somebody or for want of memory?"
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or error}. Check the file and the space on its disk."
    return (f"internal error: {type(error).__name__}: {error}. This is the program's fault: please report the lines "
            f"above and this one on the project's page, under Issues ({_environment()}).")


def _environment() -> str:
    """What a report should say of the machine."""
    import platform

    import torch

    found = {"magihuman": version(), "Python": platform.python_version(), "torch": torch.__version__}
    return ", ".join([*(f"{name} {number}" for name, number in found.items()), platform.platform()])
