"""`magihuman batch`: many clips, one after another here or side by side on Ray."""

from .command import add_batch

__all__ = ["add_batch"]
