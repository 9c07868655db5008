"""ComfyUI's own frontend in a real browser: templates, recipes, and what it queues."""

import json

import pytest
from browsing import click_until, photograph
from frontend import (
    FRONTENDS,
    PACK,
    WORKFLOWS,
    frontend,
    open_graph,
    open_template,
    queued,
    server_of,
    shipped,
    use_renderer,
)
from workflow_templates import TEMPLATES

from flux2_train.settings.recipes import RECIPES, face_on

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.long]

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
    for (const type of ['Flux2Timesteps', 'Flux2Optimizer']) {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        const free = trainer.inputs.findLastIndex(input => input.name.startsWith('options.'))
        node.connect(0, trainer, free)
    }
}"""
TRAINER = "Flux2LoraTrainer"


@pytest.fixture(scope="module", params=FRONTENDS)
def page(request):
    with frontend(server_of(request)) as opened:
        yield opened


@pytest.fixture
def template(page):
    """The quick start, opened as a person does."""
    open_template(page, TEMPLATES[0].title)
    return page


def inputs(prompt, kind) -> dict:
    return next(node["inputs"] for node in prompt.values() if node["class_type"] == kind)


def place(page, kind, widget) -> list[float]:
    """Where on the page that widget is, once the canvas shows its node."""
    page.evaluate(LOOK_AT, kind)
    return page.evaluate(PLACE, [kind, widget])


def choose(page, kind, widget, value):
    """Pick a value in a dropdown that is drawn on the canvas."""
    entry = page.locator(".litecontextmenu .litemenu-entry").get_by_text(value, exact=True)
    click_until(page, lambda: place(page, kind, widget), entry)
    entry.click()


def type_in(page, kind, widget, value):
    """Write a number into a widget that is drawn on the canvas."""
    entry = page.locator(".graphdialog input")
    click_until(page, lambda: place(page, kind, widget), entry, count=2)
    entry.fill(value)
    page.keyboard.press("Enter")
    page.locator(".graphdialog").wait_for(state="detached")


def test_the_template_browser_lists_our_workflows_with_pictures(page, screenshots):
    page.get_by_text("Templates", exact=True).first.click()
    dialog = page.locator("[role=dialog]")
    dialog.get_by_text(PACK, exact=True).click()
    cards = dialog.locator("[data-testid^=template-workflow-]")
    page.wait_for_function("() => document.querySelectorAll('[data-testid^=template-workflow-]').length === 10")
    ours = {card.get_attribute("data-testid").removeprefix("template-workflow-") for card in cards.all()}
    assert ours == {template.title for template in TEMPLATES}
    for card in cards.all():
        card.scroll_into_view_if_needed()  # a picture is fetched when it is seen
        image = card.locator("img").first
        page.wait_for_function("image => image.naturalWidth > 0", arg=image.element_handle())
    photograph(page, screenshots, "templates")
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")


@pytest.mark.parametrize("each", TEMPLATES, ids=lambda each: each.slug)
def test_the_frontend_queues_what_a_script_queues(page, each):
    open_graph(page, json.loads((WORKFLOWS / f"{each.title}.json").read_text()))
    assert queued(page) == shipped(each.slug)


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


def test_imported_settings_are_filled_in_by_a_button_and_nothing_else_changes(template):
    settings = {TRAINER: [{"steps": 77, "rank": 5, "no such widget": 1, "targets": "no such choice"}],
                "Flux2DatasetFolder": [{"folder": "photos"}, {"folder": "more"}],
                "Flux2Memory": [{"stream": False}]}  # fmt: skip
    before = queued(template)
    said = template.evaluate(
        """settings => {
            const toast = app.extensionManager.toast, add = toast.add
            const node = LiteGraph.createNode("Flux2ImportSettings"), said = []
            toast.add = message => said.push(message.detail)
            app.graph.add(node)
            const button = node.widgets.find(widget => widget.type === "button")
            button.callback()
            node.onExecuted({ flux2_settings: [settings] })
            button.callback()
            app.graph.remove(node)
            toast.add = add
            return said
        }""",
        settings,
    )
    after = queued(template)
    assert said[0].startswith("Run this node first")
    assert said[1].startswith(
        "2 nodes are filled in. Add and wire these nodes, then press again: DatasetFolder, Memory."
    )
    assert "targets" in said[1]
    assert inputs(after, TRAINER) == {**inputs(before, TRAINER), "steps": 77, "rank": 5}
    assert inputs(after, "Flux2DatasetFolder") == {**inputs(before, "Flux2DatasetFolder"), "folder": "photos"}
    assert after.keys() == before.keys()


def test_a_recipe_can_be_chosen_in_the_newer_nodes(template):
    use_renderer(template, "newer nodes")
    try:
        node = template.locator("[data-node-id='5']")
        node.get_by_text("none", exact=True).click()
        template.get_by_role("option", name="object", exact=True).click()
        found = inputs(queued(template), TRAINER)
        assert found["recipe"] == "object" and face_on(RECIPES["object"], "nano").items() <= found.items()
        assert node.get_by_role("textbox").filter(has_text="").count()
    finally:
        use_renderer(template, "canvas")
