"""daVinci-MagiHuman in plain PyTorch: one Transformer that makes a speaking person's video and audio.

The public names are those of `api`. They are imported when the first of them is asked for, so that the command
line can show its help without waiting for torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .api import *  # noqa: F403


def __getattr__(name: str):
    if name.startswith("__") and name != "__all__":  # what Python itself looks for while importing
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .api import __all__ as names

    if name == "__all__":
        return names
    if name not in names:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)
