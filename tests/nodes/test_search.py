"""What a person finds in the search for nodes."""

import pytest
from browsing import photograph
from frontend import FRONTENDS, frontend, server_of

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.long]
FIRST = {
    "train lora": "LoRA Trainer", "flux2 train": "LoRA Trainer", "dataset folder": "Dataset Folder",
    "trigger": "Dataset Folder", "preview training": "Validation",
}  # fmt: skip
AMONG_THREE = ("train", "lora", "flux2", "dataset", "caption", "preview", "klein")


@pytest.fixture(scope="module", params=FRONTENDS)
def page(request):
    with frontend(server_of(request)) as opened:
        opened.evaluate("() => app.graph.clear()")
        yield opened


@pytest.fixture
def found(page, screenshots):
    """``found(query)``: the text of each result, the best first."""

    def search(query: str) -> list[str]:
        field = page.get_by_role("combobox").first
        while not field.is_visible():  # a frontend that was just opened does not hear the first clicks
            page.mouse.dblclick(900, 600)
            page.wait_for_timeout(500)
        field.fill(query)
        page.wait_for_timeout(800)  # the list follows the typing a moment later
        results = page.get_by_role("option")
        results.first.wait_for()
        texts = results.all_inner_texts()
        photograph(page, screenshots, f"search {query}")
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        page.wait_for_timeout(300)
        return texts

    return search


@pytest.mark.drawn(cases=2)
@pytest.mark.parametrize("query", FIRST)
def test_the_right_node_is_found_first(found, query):
    assert found(query)[0].startswith(FIRST[query])


def test_a_person_sees_where_a_node_comes_from(found):
    assert "comfyui-flux2-train" in found("train lora")[0]


@pytest.fixture
def by_use(request):
    """Tells whether this frontend ranks a node by how often it is used. The newest one goes by words alone."""
    return request.node.callspec.params["page"] == "pinned"


@pytest.mark.drawn(cases=2)
@pytest.mark.parametrize("query", AMONG_THREE)
def test_one_of_ours_is_among_the_first_three(found, query, by_use):
    if query == "preview" and not by_use:
        pytest.skip("the newest frontend lists all nodes whose names begin with 'preview' before any other")
    assert any("FLUX.2" in text for text in found(query)[:3])


def test_what_everybody_uses_still_comes_first(found, by_use):
    if not by_use:
        pytest.skip("the newest frontend does not know what everybody uses")
    assert found("lora")[0].startswith("Load LoRA") and found("preview")[0].startswith("Preview Image")
