"""Values that other nodes give, held to the limits that the page holds typed values to."""

import functools
import inspect
import math
from typing import Any

from comfy_api.latest import io

from ..magihuman_core.errors import InputError, shown
from . import linked
from .adapter.notices import Notices
from .files import BESIDE_WEIGHTS, DEMO


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """A node whose inputs are looked at before it runs, and which shows what it is warned of.

    ComfyUI checks numbers, choices and texts where they are typed in, but not where a link brings them; and links by
    their types, but not what a workflow has in the place of a link.
    """
    execute = getattr(node.execute, "__func__", node.execute)
    if hasattr(execute, "__wrapped__"):  # is checked already
        return node
    signature, notices = inspect.signature(execute), Notices()

    schema_of = functools.cache(lambda: node.define_schema())  # of loaders it lists folders: once is enough

    @functools.wraps(execute)
    def run(cls, *args, **kwargs):
        schema, given = schema_of(), signature.bind(cls, *args, **kwargs).arguments
        for known in schema.inputs:
            if known.id in given and not (given[known.id] is None and may_be_missing(known)):
                check_value(known, given[known.id], f"{schema.display_name}: {known.id}")
        with notices.shown():
            return execute(cls, *args, **kwargs)

    node.execute = classmethod(run)
    return node


def may_be_missing(known: io.Input) -> bool:
    """Whether a node does without an input, or says itself what is missing: of a video without sound, AUDIO is None."""
    return known.optional or known.io_type == "AUDIO"


def check_value(known: io.Input, value: Any, name: str) -> None:
    """Raise InputError for a value that a widget or a link would not bring. name: of node and input."""
    if found := fault_of(known, value):
        raise InputError(f"{name} {found}. Look at the node that is connected there.")


def fault_of(known: io.Input, value: Any) -> str:
    """What is wrong with a value, as the end of a sentence about it; empty where nothing is."""
    if not isinstance(known, io.WidgetInput):
        return linked.fault(known.io_type, value)
    said = f"is {shown(value)}"
    if isinstance(known, io.String.Input):
        said = "holds half a character" if isinstance(value, str) else f"is {type(value).__name__}"
    wanted = expected(known, value)
    return wanted and f"{said}, expected {wanted}"


def expected(known: io.Input, value: Any) -> str:
    """What a widget would take instead of a value; empty where it takes it."""
    if isinstance(known, io.Int.Input | io.Float.Input):
        kind: type | tuple[type, ...] = int if isinstance(known, io.Int.Input) else (int, float)
        low: float = -math.inf if known.min is None else known.min
        high: float = math.inf if known.max is None else known.max
        number: Any = value if isinstance(value, kind) and not isinstance(value, bool) else math.nan
        return "" if low <= number <= high else f"a {'whole ' if kind is int else ''}number from {low:g} to {high:g}"
    if isinstance(known, io.Boolean.Input):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(known, io.String.Input):
        whole = isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
        return "" if whole else "a text"
    if isinstance(known, io.Combo.Input):
        if not isinstance(value, str):
            return "one of its choices"
        fits = value in known.options or is_list_of_files(known)
        return "" if fits else f"one of {', '.join(map(str, known.options))}"
    return ""


def is_list_of_files(known: io.Combo.Input) -> bool:
    """Whether choices are files, of which the node itself says best what is wrong."""
    return DEMO in known.options or BESIDE_WEIGHTS in known.options
