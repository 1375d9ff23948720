"""Checkpoints: opening, recognising, reading and writing weight files."""

from .assign import assign_weights
from .checkpoint import Checkpoint, Entry, concatenated, renamed, strip_prefix
from .recognise import inferring
from .source import open_checkpoint

__all__ = [
    "Checkpoint",
    "Entry",
    "assign_weights",
    "concatenated",
    "inferring",
    "open_checkpoint",
    "renamed",
    "strip_prefix",
]
