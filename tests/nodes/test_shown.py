"""What nodes show is remembered by workflow, for tabs that are opened or reloaded later, and is bounded."""

import importlib

import pytest
from PIL import Image


@pytest.fixture
def shown(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.browser.shown")


def test_a_board_keeps_the_newest_of_every_node(shown):
    board = shown.Board()
    board.put("one", "5", text="step 1", picture="data:")
    board.put("one", "5", text="step 2")
    board.put("two", "5", text="other")
    assert board.of("one") == {"5": {"text": "step 2", "picture": "data:", "images": []}}
    assert board.of("two")["5"]["text"] == "other" and board.of("three") == {}


def test_a_board_is_bounded(shown):
    board = shown.Board()
    for number in range(100):
        board.put("busy", str(number), text="x")
    for number in range(shown.MOST_WORKFLOWS - 1):
        board.put(str(number), "1", text="x")
    assert len(board.of("busy")) == shown.MOST_NODES and "99" in board.of("busy")
    board.put("newest", "1", text="x")
    assert not board.of("busy") and board.of("newest")


def test_a_picture_becomes_an_address_that_a_browser_reads(shown):
    assert shown.picture_url(Image.new("RGBA", (8, 8))).startswith("data:image/jpeg;base64,")


def test_on_a_server_of_another_kind_nothing_is_shown_and_nothing_fails(pack, shown, monkeypatch):
    """A newer ComfyUI may lack what we use of its server: nodes run, and the log says what is not shown."""
    server = importlib.import_module("server")
    contract = importlib.import_module(f"{pack.__name__}.flux2_train.host.contract")
    routes = importlib.import_module(f"{pack.__name__}.nodes.browser.routes")
    monkeypatch.setattr(server.PromptServer, "instance", object(), raising=False)
    monkeypatch.delattr(server.PromptServer, "send_sync")
    contract.lacking.cache_clear()
    try:
        routes.add_routes()
        shown.show("1", text="step 1")
        assert shown.running_workflow() == "" and shown.keep("1", "done") == {shown.TEXT: ["done"]}
        (sentence,) = contract.sentences()
        assert "server.PromptServer.send_sync" in sentence and "not work: showing runs, texts and pictures" in sentence
    finally:
        contract.lacking.cache_clear()
