"""ComfyUI's own frontend in a real browser: templates, recipes, and what it queues."""

import json
import shutil
from pathlib import Path

import pytest

from flux2_train.settings.recipes import RECIPES, face_on

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[2] / "workflows"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PACK = "comfyui-flux2-train"
READY = "() => window.app?.graph && app.extensions.some(e => e.name === 'flux2_train.recipes')"
PROMPT = "async () => (await app.graphToPrompt()).output"
# Where on the page the middle of a widget of the node of that type is drawn.
PLACE = """([type, name]) => {
    const node = app.graph._nodes.find(n => n.type === type), widget = node.widgets.find(w => w.name === name)
    const { scale, offset } = app.canvas.ds, { left, top } = app.canvas.canvas.getBoundingClientRect()
    return [left + (node.pos[0] + node.size[0] / 2 + offset[0]) * scale,
            top + (node.pos[1] + widget.last_y + 10 + offset[1]) * scale]
}"""
LOOK_AT = """type => {
    const node = app.graph._nodes.find(n => n.type === type)
    app.canvas.ds.scale = 1
    app.canvas.centerOnNode(node)
    app.canvas.draw(true, true)
}"""
WIRE_OPTIONS = """() => {
    const trainer = app.graph._nodes.find(n => n.type === 'Flux2LoraTrainer')
    for (const [type, input] of [['Flux2Timesteps', 'timesteps'], ['Flux2Optimizer', 'optimizer']]) {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        node.connect(0, trainer, input)
    }
}"""
TRAINER = "Flux2LoraTrainer"


@pytest.fixture(scope="module")
def page(server):
    """The frontend, opened by somebody who has been there before: the first visit shows a tour."""
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome was found (on Debian: apt install chromium)")
    server.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": False})
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1600, "height": 1000}, locale="en-US")
        opened.set_default_timeout(120_000)  # a slow machine that runs other tests beside this one
        opened.goto(server.url)
        opened.wait_for_function(READY, timeout=120_000)
        yield opened
        browser.close()


@pytest.fixture
def template(page):
    """The shipped nano workflow, opened as a person does: Templates, our pack, its card."""
    page.get_by_text("Templates", exact=True).first.click()
    dialog = page.locator("[role=dialog]")
    dialog.get_by_text(PACK, exact=True).click()
    dialog.get_by_test_id("template-workflow-flux2_lora_nano").click()
    dialog.wait_for(state="hidden")
    page.wait_for_function("count => app.graph._nodes.length === count", arg=len(shipped("flux2_lora_nano")))
    return page


def shipped(name) -> dict:
    return json.loads((ROOT / "api" / f"{name}.json").read_text())


def queued(page) -> dict:
    """What the button Run would send."""
    return page.evaluate(PROMPT)


def inputs(prompt, kind) -> dict:
    return next(node["inputs"] for node in prompt.values() if node["class_type"] == kind)


def choose(page, kind, widget, value):
    """Pick a value in a dropdown that is drawn on the canvas."""
    page.evaluate(LOOK_AT, kind)
    page.mouse.click(*page.evaluate(PLACE, [kind, widget]))
    page.locator(".litecontextmenu .litemenu-entry").get_by_text(value, exact=True).click()


def type_in(page, kind, widget, value):
    """Write a number into a widget that is drawn on the canvas."""
    page.evaluate(LOOK_AT, kind)
    page.mouse.dblclick(*page.evaluate(PLACE, [kind, widget]))
    page.locator(".graphdialog input").fill(value)
    page.keyboard.press("Enter")
    page.locator(".graphdialog").wait_for(state="detached")


def test_the_template_browser_lists_our_workflows_with_pictures(page):
    page.get_by_text("Templates", exact=True).first.click()
    dialog = page.locator("[role=dialog]")
    dialog.get_by_text(PACK, exact=True).click()
    cards = dialog.locator("[data-testid^=template-workflow-]")
    page.wait_for_function("() => document.querySelectorAll('[data-testid^=template-workflow-] img').length === 4")
    ours = {card.get_attribute("data-testid").removeprefix("template-workflow-") for card in cards.all()}
    assert ours == {path.stem for path in ROOT.glob("*.json")}
    for image in cards.locator("img").all():
        page.wait_for_function("image => image.naturalWidth > 0", arg=image.element_handle())
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")


@pytest.mark.parametrize("name", sorted(path.stem for path in ROOT.glob("*.json")))
def test_the_frontend_queues_what_a_script_queues(page, name):
    page.evaluate("graph => app.loadGraphData(graph)", json.loads((ROOT / f"{name}.json").read_text()))
    assert queued(page) == shipped(name)
    page.keyboard.press("Escape")  # the dialog that lists missing models


def test_a_recipe_fills_in_the_trainer_and_what_is_changed_by_hand_stays(template):
    before = inputs(queued(template), TRAINER)
    choose(template, TRAINER, "recipe", "character")
    filled = inputs(queued(template), TRAINER)
    assert filled == {**before, "recipe": "character", **face_on(RECIPES["character"], "nano")}
    type_in(template, TRAINER, "rank", "24")
    changed = queued(template)
    assert inputs(changed, TRAINER) == {**filled, "rank": 24}
    template.evaluate("() => app.loadGraphData(app.graph.serialize())")  # opening a workflow chooses nothing anew
    assert queued(template) == changed


def test_a_recipe_fills_in_wired_option_nodes_too(template):
    template.evaluate(WIRE_OPTIONS)
    before = queued(template)
    choose(template, TRAINER, "recipe", "musubi")
    choose(template, "Flux2Optimizer", "optimizer", "lion")
    after, recipe = queued(template), RECIPES["musubi"]
    assert inputs(after, TRAINER) == {**inputs(before, TRAINER), "recipe": "musubi", **face_on(recipe, "nano")}
    assert inputs(after, "Flux2Timesteps") == inputs(before, "Flux2Timesteps")  # musubi's are the defaults
    assert inputs(after, "Flux2Optimizer") == {**inputs(before, "Flux2Optimizer"), "optimizer": "lion"}
    choose(template, TRAINER, "recipe", "ai-toolkit")
    after = queued(template)
    assert inputs(after, "Flux2Timesteps")["distribution"] == "weighted"
    optimizer = RECIPES["ai-toolkit"].sections["optimizer"]
    shown = {"optimizer": optimizer.optimizer, "eps": optimizer.eps, "weight_decay": optimizer.weight_decay}
    assert inputs(after, "Flux2Optimizer") == {**inputs(before, "Flux2Optimizer"), **shown}


def test_a_recipe_can_be_chosen_in_the_newer_nodes(template):
    template.evaluate("() => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
    try:
        node = template.locator("[data-node-id='5']")
        node.get_by_text("none", exact=True).click()
        template.get_by_role("option", name="object", exact=True).click()
        found = inputs(queued(template), TRAINER)
        assert found["recipe"] == "object" and face_on(RECIPES["object"], "nano").items() <= found.items()
        assert node.get_by_role("textbox").filter(has_text="").count()
    finally:
        template.evaluate("() => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
