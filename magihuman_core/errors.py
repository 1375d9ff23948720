"""The two ways in which what a user gave can be wrong."""


class InputError(ValueError):
    """An argument, prompt, image or audio cannot be used; the message names it and the remedy."""


class CheckpointError(ValueError):
    """A weight file is damaged, of the wrong kind, or incomplete; the message names it and the remedy."""
