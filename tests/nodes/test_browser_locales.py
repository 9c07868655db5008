"""The nodes in the reader's own language, as ComfyUI's frontend shows them in a browser of that language."""

import json

import pytest
from frontend import RENDERERS, WORKFLOWS, frontend, open_graph, queued, server_of, shipped, use_renderer
from workflow_templates import TEMPLATES

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.long]
LOCALES = WORKFLOWS.parent / "locales"
LANGUAGES = {"es": "es-ES", "zh": "zh-CN", "ja": "ja-JP", "fr": "fr-FR"}
TRAINER, WIDGET = "Flux2LoraTrainer", "learning_rate"
TOOLTIP = ".p-tooltip-text, [data-testid=tooltip-content] > [role=tooltip]"  # on the pinned frontend, on newer ones
SLOW = pytest.mark.slow
CASES = [
    "pinned, es", "pinned, zh",
    *(pytest.param(name, marks=SLOW) for name in ("pinned, ja", "pinned, fr", "newest, es", "newest, zh")),
]  # fmt: skip
# Looks at the trainer, and gives the middle of a widget's row on the page.
ROW = """([type, name]) => {
    const node = app.graph._nodes.find(n => n.type === type), widget = node.widgets.find(w => w.name === name)
    app.canvas.ds.scale = 1
    app.canvas.centerOnNode(node)
    app.canvas.draw(true, true)
    const { scale, offset } = app.canvas.ds, { left, top } = app.canvas.canvas.getBoundingClientRect()
    return [left + (node.pos[0] + 60 + offset[0]) * scale, top + (node.pos[1] + widget.last_y + 10 + offset[1]) * scale]
}"""
LABEL = """([type, name]) => app.graph._nodes.find(n => n.type === type).widgets.find(w => w.name === name).label"""
SAID = """type => {
    const node = app.graph._nodes.find(n => n.type === type)
    return { title: node.title, labels: node.widgets.map(w => w.label), category: node.constructor.nodeData.category,
             sockets: node.inputs.filter(i => !i.widget).map(i => i.label || i.localized_name || i.name),
             colour: node.color, id: node.id }
}"""


@pytest.fixture(scope="module", params=CASES)
def tab(request):
    """(page, its language's texts of the trainer, its language) with the quick start opened."""
    language = request.param.partition(", ")[2]
    with frontend(server_of(request), locale=LANGUAGES[language]) as page:
        open_graph(page, json.loads((WORKFLOWS / f"{TEMPLATES[0].title}.json").read_text()))
        yield page, json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))[TRAINER], language


@pytest.fixture(params=RENDERERS)
def renderer(request, tab):
    use_renderer(tab[0], request.param)
    yield request.param
    use_renderer(tab[0], "canvas")


def main_words(language: str) -> dict:
    return json.loads((LOCALES / language / "main.json").read_text("utf-8"))


def tooltip(page, renderer: str) -> str:
    """What comes up where the mouse stays on a widget's name."""
    row = page.evaluate(ROW, [TRAINER, WIDGET])
    page.wait_for_timeout(300)  # the view has moved: the frontend draws it anew
    if renderer == "canvas":
        page.mouse.move(*row)
        page.mouse.move(row[0] + 1, row[1])
        page.wait_for_function("() => document.querySelector('.node-tooltip')?.textContent.trim()")
        return page.locator(".node-tooltip").inner_text().strip()
    number = page.evaluate(SAID, TRAINER)["id"]
    label = page.evaluate(LABEL, [TRAINER, WIDGET])
    page.locator(f"[data-node-id='{number}']").get_by_text(label, exact=True).first.hover()
    return page.locator(TOOLTIP).first.inner_text()


def test_title_inputs_and_tooltip_are_in_the_readers_language(tab, renderer, screenshots):
    page, texts, language = tab
    said = page.evaluate(SAID, TRAINER)
    assert said["title"] == texts["display_name"]
    assert texts["inputs"][WIDGET]["name"] in said["labels"]
    assert said["category"] == f"FLUX.2/{main_words(language)['nodeCategories']['Train']}"
    assert tooltip(page, renderer) == texts["inputs"][WIDGET]["tooltip"]
    page.screenshot(path=screenshots / f"locale {language}, {renderer}.png")
    if renderer == "newer nodes":
        drawn = page.locator(f"[data-node-id='{said['id']}']").inner_text()
        assert texts["display_name"] in drawn and texts["inputs"][WIDGET]["name"] in drawn


def test_growing_sockets_colours_and_buttons_follow(tab):
    page, texts, language = tab
    said = page.evaluate(SAID, TRAINER)
    validation = json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))["Flux2Validation"]
    own = main_words(language)["flux2_train"]
    assert said["sockets"][:3] == [texts["inputs"][name]["name"] for name in ("model", "embeds", "latents")]
    assert said["sockets"][3:] == [validation["outputs"]["0"]["name"], own["options"]]
    assert said["colour"] == "#3d3468"
    button = "() => LiteGraph.createNode('Flux2ImportSettings').widgets.find(w => w.type === 'button').label"
    assert page.evaluate(button) == own["fill in the graph"]


def test_help_opens_in_the_readers_language_with_its_picture(tab, screenshots):
    page, texts, language = tab
    page.evaluate("""type => {
        const node = app.graph._nodes.find(n => n.type === type)
        app.canvas.centerOnNode(node)
        app.canvas.selectNode(node)
    }""", TRAINER)  # fmt: skip
    page.get_by_test_id("info-button").click()
    page.get_by_role("heading", name=texts["display_name"], exact=True).first.wait_for()
    page.wait_for_function("() => document.querySelector(`img[src$='Flux2LoraTrainer.webp']`)?.naturalWidth > 100")
    page.screenshot(path=screenshots / f"help {language}.png")


def test_values_and_what_is_queued_stay_the_same(tab):
    def without_titles(prompt: dict) -> dict:
        return {number: (node["class_type"], node["inputs"]) for number, node in prompt.items()}

    assert without_titles(queued(tab[0])) == without_titles(shipped(TEMPLATES[0].slug))
