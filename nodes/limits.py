"""Values that other nodes give, held to the limits that the page holds typed values to."""

import functools
import inspect
import math
from typing import Any

from comfy_api.latest import io

from ..magihuman_core.errors import InputError, shown
from .files import BESIDE_WEIGHTS, DEMO


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """A node whose numbers, choices and texts are looked at before it runs.

    ComfyUI checks these where they are typed in, but not where a link brings them.
    """
    execute = getattr(node.execute, "__func__", node.execute)
    if hasattr(execute, "__wrapped__"):  # is checked already
        return node
    signature = inspect.signature(execute)

    @functools.wraps(execute)
    def run(cls, *args, **kwargs):
        schema = cls.define_schema()
        given = signature.bind(cls, *args, **kwargs).arguments
        given.update(given.pop("kwargs", {}))
        for known in schema.inputs:
            if given.get(known.id) is not None:
                check_value(known, given[known.id], f"{schema.display_name}: {known.id}")
        return execute(cls, *args, **kwargs)

    node.execute = classmethod(run)
    return node


def check_value(known: io.Input, value: Any, name: str) -> None:
    """Raise InputError for a value that a widget would not take. name: of node and input."""
    if isinstance(known, io.Int.Input | io.Float.Input):
        kind: type | tuple[type, ...] = int if isinstance(known, io.Int.Input) else (int, float)
        low: float = -math.inf if known.min is None else known.min
        high: float = math.inf if known.max is None else known.max
        number: Any = value if isinstance(value, kind) and not isinstance(value, bool) else math.nan
        if not low <= number <= high:
            raise InputError(f"{name} is {shown(value)}, "
                             f"expected a {'whole ' if kind is int else ''}number from {low:g} to "
                             f"{high:g}. Look at the node that is connected there.")
    elif isinstance(known, io.Boolean.Input):
        if not isinstance(value, bool):
            raise InputError(f"{name} is {shown(value)}, "
                             f"expected true or false. Look at the node that is connected there.")
    elif isinstance(known, io.String.Input):
        if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
            what = "holds half a character" if isinstance(value, str) else f"is {type(value).__name__}"
            raise InputError(f"{name} {what}, expected a text. Look at the node that is connected there.")
    elif isinstance(known, io.Combo.Input) and not isinstance(value, str):
        raise InputError(f"{name} is {shown(value)}, "
                         f"expected one of its choices. Look at the node that is connected there.")
    elif isinstance(known, io.Combo.Input) and value not in known.options and not is_list_of_files(known):
        raise InputError(f"{name} is {shown(value)}, expected one of {', '.join(map(str, known.options))}.")


def is_list_of_files(known: io.Combo.Input) -> bool:
    """Whether choices are files, of which the node itself says best what is wrong."""
    return DEMO in known.options or BESIDE_WEIGHTS in known.options
