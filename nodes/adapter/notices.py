"""Warnings on the node that they come from: whoever works in the page does not see the log."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from comfy_execution.utils import get_executing_context
from server import PromptServer

NONE = "No warnings."  # in the place of earlier ones: the page takes no empty text


class Notices:
    """What the nodes of one kind are warned of, shown below their widgets until they run again."""

    def __init__(self) -> None:
        self.standing: set[str] = set()  # ids of the nodes that show a warning

    @contextmanager
    def shown(self) -> Iterator[None]:
        """For the time that a node runs."""
        context = get_executing_context()
        if context is None:  # executed by itself, not as a part of a graph
            yield
            return
        handler, logger = Warned(context.node_id), logging.getLogger(__name__.removesuffix(".nodes.adapter.notices"))
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            if handler.texts:
                self.standing.add(context.node_id)
            elif context.node_id in self.standing:
                self.standing.remove(context.node_id)
                show(context.node_id, NONE)


class Warned(logging.Handler):
    """Shows each warning of the pack on a node, below the earlier ones."""

    def __init__(self, node_id: str):
        super().__init__(logging.WARNING)
        self.node_id, self.texts = node_id, dict[str, None]()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts[record.getMessage()] = None
        show(self.node_id, "\n".join(self.texts))


def show(node_id: str, text: str) -> None:
    """On the page that sent the graph alone: elsewhere the same number may be another node."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and server.client_id is not None:
        server.send_progress_text(text, node_id, server.client_id)
