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
