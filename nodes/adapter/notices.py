"""Texts on the node that they come from, warnings above all: whoever works in the page does not see the log."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from comfy_execution.utils import get_executing_context
from server import PromptServer

PACK = __name__.removesuffix(".nodes.adapter.notices")
NONE = "No warnings."  # in the place of earlier ones: the page takes no empty text


class Notices:
    """What the nodes of one kind are warned of, shown below their widgets until they run again."""

    def __init__(self) -> None:
        self.standing: dict[str, tuple[str | None, str, list[str]]] = {}  # by a node's id: of which page and run, texts

    @contextmanager
    def shown(self) -> Iterator[None]:
        """For the time that a node runs; one that has a list of inputs runs several times."""
        context = get_executing_context()
        if context is None:  # executed by itself, not as a part of a graph
            yield
            return
        page = getattr(getattr(PromptServer, "instance", None), "client_id", None)
        shown_to, run, texts = self.standing.pop(context.node_id, (None, "", []))
        stands = bool(texts) and shown_to == page
        texts = texts if stands and run == context.prompt_id else []
        handler, logger = Warned(context.node_id, texts), logging.getLogger(PACK)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            if texts:
                self.standing[context.node_id] = page, context.prompt_id, texts
            elif stands:
                show(context.node_id, NONE)


class Warned(logging.Handler):
    """Shows each warning of the pack on a node, below the earlier ones in `texts`."""

    def __init__(self, node_id: str, texts: list[str]):
        super().__init__(logging.WARNING)
        self.node_id, self.texts = node_id, texts

    def emit(self, record: logging.LogRecord) -> None:
        self.add(record.getMessage())

    def add(self, text: str) -> None:
        if text not in self.texts:
            self.texts.append(text)
            show(self.node_id, "\n".join(self.texts))


def show_here(text: str) -> None:
    """Show a text on the node that runs, below its warnings.

    What a node returns for the page, that draws for some nodes of core alone.
    """
    context = get_executing_context()
    for handler in logging.getLogger(PACK).handlers:
        if isinstance(handler, Warned) and context is not None and handler.node_id == context.node_id:
            handler.add(text)


def show(node_id: str, text: str) -> None:
    """On the page that sent the graph alone: elsewhere the same number may be another node.

    Nodes 2.0 reads a text as Markdown, where a line goes on in the next one unless it ends in two spaces.
    """
    server = getattr(PromptServer, "instance", None)
    if server is not None and server.client_id is not None:
        server.send_progress_text(text.replace("\n", "  \n"), node_id, server.client_id)
