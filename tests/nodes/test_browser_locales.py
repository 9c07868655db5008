"""The nodes in the reader's own language, as ComfyUI's frontend shows them in a browser of that language."""

import json
import re

import pytest
from browsing import LOOK_AT, load, photograph
from frontend import RENDERERS, WORKFLOWS, frontend, open_graph, queued, server_of, shipped, use_renderer
from made_runs import make_run
from pictures import picture
from support import drawn
from workflow_templates import TEMPLATES

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.long]
LOCALES = WORKFLOWS.parent / "locales"
LANGUAGES = {"es": "es-ES", "zh": "zh-CN", "ja": "ja-JP", "fr": "fr-FR"}
TRAINER, WIDGET = "Flux2LoraTrainer", "learning_rate"
TOOLTIP = ".p-tooltip-text, [data-testid=tooltip-content] > [role=tooltip]"  # on the pinned frontend, on newer ones
EVERY = ("pinned, es", "pinned, zh", "pinned, ja", "pinned, fr", "newest, es", "newest, zh")
OFTEN = drawn(EVERY[:2], 1)
CASES = [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in EVERY]
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
# Every text, tooltip and name in an element; the names of settings that a menu offers are values.
READ = """selector => [...document.querySelectorAll(selector)].flatMap(root => {
    const found = [], walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT)
    while (walker.nextNode()) {
        const { data, parentElement: parent } = walker.currentNode
        if (!(parent.tagName === 'OPTION' && parent.value === data)) found.push(data)
    }
    for (const each of [root, ...root.querySelectorAll('*')])
        for (const name of ['title', 'placeholder', 'aria-label', 'alt']) found.push(each.getAttribute(name) ?? '')
    return found
})"""
BUTTONS = "selector => [...document.querySelectorAll(`${selector} button`)].map(button => button.textContent)"
CUT_OFF = """selector => [...document.querySelectorAll(`${selector} button`)]
    .filter(button => button.scrollWidth > button.clientWidth + 1).map(button => button.textContent)"""
STEERED = ("Stop and keep", "Pause", "Save now", "Preview now", "Change …", "Apply", "Go on", "zoom out", "full size")
MANAGED = ("Go on", "Queue variations …", "Compare …", "Copy job file", "LoRA from a checkpoint …", "Delete …")
CURATED = ("Undo", "Close", "Search and replace", "Tags", "Cache", "Exclude", "Paint mask", "◀ Previous", "Next ▶")
RECORD = (
    {"kind": "began", "at": 0, "total": 40},
    {"kind": "plan", "text": "", "peak": 2_000_000_000, "parts": {"LoRA": 1_000_000_000}},
    {"kind": "steps", "first": 1, "total": 40, "rate": 1e-4, "loss": [0.2] * 20, "smoothed": [0.2] * 20,
     "preservation": [0.1] * 20, "seconds": [1.0] * 20},
    {"kind": "validation", "step": 20, "loss": 0.3, "held_out": True},
    {"kind": "preview", "step": 20, "pictures": [{"number": 1, "label": "vorn", "seed": 7}]},
    {"kind": "selectivity", "step": 20, "taught": 0.04, "leaked": 0.005, "selectivity": 8.0},
    {"kind": "best", "step": 20}, {"kind": "memory", "used": 1_000_000_000, "whole": False},
    {"kind": "resumed", "step": 20, "total": 40}, {"kind": "ended", "status": "stopped", "why": ""},
)  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def seat(request):
    """(server, language) of a case."""
    return server_of(request), request.param.partition(", ")[2]


@pytest.fixture(scope="module")
def tab(seat):
    """(page, its language's texts of the trainer, its language) with the quick start opened."""
    server, language = seat
    with frontend(server, locale=LANGUAGES[language]) as page:
        open_graph(page, json.loads((WORKFLOWS / f"{TEMPLATES[0].title}.json").read_text()))
        yield page, json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))[TRAINER], language


@pytest.fixture(params=RENDERERS)
def renderer(request, tab):
    use_renderer(tab[0], request.param)
    yield request.param
    use_renderer(tab[0], "canvas")


def main_words(language: str) -> dict:
    return json.loads((LOCALES / language / "main.json").read_text("utf-8"))


def hovered(page) -> str:
    """The tooltip of a widget on the canvas; none where the view has moved, as it does after a template is opened."""
    x, y = page.evaluate(ROW, [TRAINER, WIDGET])
    page.wait_for_timeout(300)
    page.mouse.move(x, y)
    page.mouse.move(x + 1, y)
    for _ in range(30):
        page.wait_for_timeout(100)
        if text := page.evaluate("() => document.querySelector('.node-tooltip')?.textContent.trim()"):
            return text
    return ""


def tooltip(page, renderer: str) -> str:
    """What comes up where the mouse stays on a widget's name."""
    if renderer == "canvas":
        return next(filter(None, (hovered(page) for _ in range(10))))
    page.evaluate(ROW, [TRAINER, WIDGET])
    page.wait_for_timeout(300)  # the frontend needs some frames to draw the view that has moved
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
    photograph(page, screenshots, f"locale {language}, {renderer}")
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
    photograph(page, screenshots, f"help {language}")


def test_values_and_what_is_queued_stay_the_same(tab):
    def without_titles(prompt: dict) -> dict:
        return {number: (node["class_type"], node["inputs"]) for number, node in prompt.items()}

    assert without_titles(queued(tab[0])) == without_titles(shipped(TEMPLATES[0].slug))


@pytest.fixture
def run(seat):
    """The name of a stopped run with everything in it that panel and tab show."""
    server, language = seat
    name = f"vorn_{language}"
    path = make_run(server.folder / "output" / "flux2_train", name, 20, status="stopped", rank=16)
    (path / "record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in RECORD))
    return name


@pytest.fixture
def pictures(seat, tab):
    """The name of a folder of pictures, opened in Dataset Folder alone; the quick start is opened again afterwards."""
    (server, language), page = seat, tab[0]
    name = f"pictures_{language}"
    for number in range(2):
        picture(server.folder / "input" / name / f"{number}.png", size=(128, 128), caption="vorn" if number else "")
    load(page, {"1": {"class_type": "Flux2DatasetFolder", "inputs": {"folder": name, "resolution": 128}}})
    page.evaluate(LOOK_AT, ["1", 1])
    yield name
    open_graph(page, json.loads((WORKFLOWS / f"{TEMPLATES[0].title}.json").read_text()))


def english_left(page, selector: str, language: str) -> list[str]:
    """What an element says in English although the language has other words for it."""
    words = main_words(language)["flux2_train"]
    known = [re.sub(r"\\{\w+\\}", ".+", re.escape(english)) for english, own in words.items() if own != english]
    pattern = re.compile("|".join(known))
    texts = [text for text in page.evaluate(READ, selector) if "learning_rate" not in text]  # the job's own settings
    parts = [re.sub(r" \d+\+?$", "", part.strip()) for text in texts for part in text.split(" · ")]
    assert len([part for part in parts if part]) > 8, parts
    return [part for part in parts if pattern.fullmatch(part)]


def in_own_words(page, selector: str, language: str, buttons: tuple[str, ...] = ()) -> None:
    """An element has these buttons in the language, fits all of its buttons, and has no English left."""
    words = main_words(language)["flux2_train"]
    assert {words[button] for button in buttons} - set(page.evaluate(BUTTONS, selector)) == set()
    assert english_left(page, selector, language) == []
    assert page.evaluate(CUT_OFF, selector) == []


def test_the_tab_of_runs_and_a_runs_panel_are_in_the_readers_language(tab, run, screenshots):
    page, _, language = tab
    own = main_words(language)["flux2_train"]
    page.get_by_role("button", name=own["FLUX.2 runs"]).first.click()
    page.get_by_role("option").filter(has=page.get_by_text(run, exact=True)).click()
    page.locator(".flux2-run-detail .flux2-run canvas").wait_for()
    page.wait_for_function("() => document.querySelectorAll('.flux2-run .u-series').length > 3")
    assert page.locator(".flux2-runs .head h2").inner_text() == own["FLUX.2 runs"]
    assert own["held-out"] in page.locator(".flux2-run .u-legend").inner_text()
    in_own_words(page, ".flux2-run", language, STEERED)
    in_own_words(page, ".flux2-runs", language, MANAGED)
    photograph(page, screenshots, f"runs {language}")
    page.get_by_role("button", name=own["Queue variations …"]).click()
    in_own_words(page, ".flux2-ask", language, ("Add to the queue", "Cancel"))
    page.keyboard.press("Escape")
    page.get_by_role("button", name=own["FLUX.2 runs"]).first.click()


def test_the_browser_of_pictures_is_in_the_readers_language(tab, pictures, screenshots):
    page, _, language = tab
    own = main_words(language)["flux2_train"]
    page.get_by_role("button", name=own["Open pictures"]).click()
    page.wait_for_function("() => document.querySelectorAll('.flux2-data .card img[src]').length === 2")
    shown = page.locator("dialog.flux2-data")
    assert shown.locator("h2").inner_text() == own["Pictures of {folder}"].replace("{folder}", pictures)
    in_own_words(page, ".flux2-data", language, CURATED)
    photograph(page, screenshots, f"pictures {language}")
    for tool in ("Search and replace", "Tags", "Cache"):
        shown.get_by_role("button", name=own[tool], exact=True).click()
        in_own_words(page, ".flux2-data", language)
    shown.get_by_role("button", name=own["Paint mask"], exact=True).click()
    in_own_words(page, ".flux2-mask", language, ("Erase", "All", "Nothing", "Invert", "Undo", "Save", "Cancel"))
    photograph(page, screenshots, f"mask {language}")
    page.keyboard.press("Escape")
    shown.get_by_role("button", name=own["Close"], exact=True).click()
    shown.wait_for(state="detached")
