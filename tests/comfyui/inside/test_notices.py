"""Warnings on the node, as ComfyUI's server sends them to the page."""

import asyncio
import struct

import pytest
from comfy_execution.utils import CurrentNodeContext
from magihuman_pack.nodes.check import MagiHumanCheck
from magihuman_pack.nodes.conditioning import MagiHumanPrompt
from server import BinaryEventTypes, PromptServer

GOOD = {"body": " ".join(["word"] * 160) + ' "Hello."', "dialogue": "woman in green, English: Hello.",
        "background_sound": "No prominent background sound"}  # fmt: skip


@pytest.fixture
def sent(monkeypatch):
    """sent() -> [(node, text, page)] since it was called last."""
    loop = asyncio.new_event_loop()
    server = PromptServer(loop)
    monkeypatch.setattr(PromptServer, "instance", server, raising=False)
    server.client_id = "page"

    def take():
        loop.run_until_complete(asyncio.sleep(0))
        found = []
        while not server.messages.empty():
            event, data, page = server.messages.get_nowait()
            assert event == BinaryEventTypes.TEXT
            length = struct.unpack(">I", data[:4])[0]
            found.append((data[4 : 4 + length].decode(), data[4 + length :].decode(), page))
        return found

    take.server = server
    yield take
    loop.close()


def prompt(run, node="7", **inputs):
    with CurrentNodeContext(run, node):
        MagiHumanPrompt.execute(**{**GOOD, **inputs})


def test_a_warning_stands_until_the_node_runs_without(sent):
    prompt("first")
    assert sent() == []
    prompt("second", body="He nods.")
    assert all(node == "7" and page == "page" for node, _, page in sent())
    prompt("third", node="8")
    assert sent() == []
    prompt("third")
    assert sent() == [("7", "No warnings.", "page")]
    prompt("fourth")
    assert sent() == []


def test_another_page_is_not_told_that_a_warning_is_over(sent):
    prompt("a run", body="He nods.", node="9")
    assert sent()
    sent.server.client_id = "another page"
    prompt("another run", node="9")
    assert sent() == []


def test_of_a_list_of_inputs_all_warnings_stand(sent):
    prompt("first", body='Now two words and "Hello."')
    prompt("first", body='Another three words "Hello."')
    prompt("first")
    (node, text, _) = sent()[-1]
    assert node == "7"
    assert len(set(text.splitlines())) == 2


def test_whoever_sends_a_graph_without_a_page_gets_none(sent):
    sent.server.client_id = None
    prompt("first", body="He nods.")
    assert sent() == []


def test_the_report_of_a_check_stands_on_its_node_each_time_and_in_the_history(sent):
    for run in ("first", "second"):
        with CurrentNodeContext(run, "5"):
            result = MagiHumanCheck.execute(start="text", size="448x256", upright=False, base=False)
        (report,) = result.args
        assert report.startswith("For: ")
        ((node, text, page),) = sent()
        assert (node, page) == ("5", "page")
        assert text.split("  \n") == report.split("\n"), "Markdown keeps its lines"
        assert result.ui.as_dict() == {"text": (report,)}
