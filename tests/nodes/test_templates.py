"""The templates as a newcomer meets them: opened in the browser in both renderers, measured, run, and looked at.

Screenshots lie in ``screenshots0`` of the tests' temporary folder.
"""

import json
import re
import shutil

import pytest
from browsing import photograph
from comfy_server import ROOT
from frontend import (
    FRONTENDS,
    RENDERERS,
    WORKFLOWS,
    boxes,
    frontend,
    open_graph,
    open_template,
    overlapping,
    queued,
    server_of,
    shipped,
    use_renderer,
)
from workflow_files import NOTE
from workflow_templates import TEMPLATES

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.long]
QUICK_START = TEMPLATES[0]
SECONDS = 900
# Every place, on a grid inside the nodes, where a wire is drawn under one: [node, x, y].
UNDER = """() => {
    const paths = [...app.graph.links.values(), ...app.graph.reroutes.values()].map(each => each.path).filter(Boolean)
    const context = new OffscreenCanvas(1, 1).getContext('2d'), edge = 14, step = 14, found = []
    context.lineWidth = step * 1.5
    for (const node of app.graph._nodes)
        for (let x = node.pos[0] + edge; x < node.pos[0] + node.size[0] - edge; x += step)
            for (let y = node.pos[1] - 30; y < node.pos[1] + node.size[1]; y += step)
                if (paths.some(path => context.isPointInStroke(path, x, y))) found.push([node.title, x, y])
    return [paths.length, found]
}"""
SET = """([type, values]) => {
    for (const node of app.graph._nodes.filter(n => n.type === type))
        for (const [name, value] of Object.entries(values)) {
            const widget = node.widgets.find(w => w.name === name)
            widget.value = value
            widget.callback?.(value)
        }
}"""
SAID = (
    "() => app.graph._nodes.find(n => n.type === 'Flux2LoraTrainer').widgets.find(w => w.name === 'flux2_shown').value"
)
SAYS = """pattern => app.graph._nodes.some(n => n.type === 'Flux2LoraTrainer' &&
    new RegExp(pattern).test(n.widgets.find(w => w.name === 'flux2_shown')?.value ?? ''))"""
CANCEL = "() => app.api.fetchApi('/interrupt', { method: 'POST' })"  # as the button does
WATCH = """() => {
    window.ended = null
    for (const event of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(event, ({ detail }) => { window.ended = { event, detail } }, { once: true })
}"""


@pytest.fixture(scope="module", params=FRONTENDS)
def page(request):
    """The frontend that this ComfyUI pins, or the newest known one, on a screen that shows every node."""
    server = server_of(request)
    add_picture(server)
    with frontend(server, 2600, 1600) as opened:
        yield opened


def add_picture(server) -> None:
    """The picture that ComfyUI itself comes with in its input folder, which the edit template loads."""
    picture = sorted((ROOT / "datasets" / "edit-reference").glob("*.png"))[0]
    shutil.copy(picture, server.folder / "input" / "example.png")


@pytest.fixture
def look(request, page, screenshots):
    """``look(name)`` takes a screenshot."""
    newest = "" if request.node.callspec.params["page"] == "pinned" else ", newest"
    return lambda name: photograph(page, screenshots, f"{name}{newest}")


@pytest.fixture(scope="module", params=RENDERERS)
def renderer(request, page):
    use_renderer(page, request.param)
    yield request.param
    use_renderer(page, "canvas")


def graph_of(template) -> dict:
    return json.loads((WORKFLOWS / f"{template.title}.json").read_text())


def press_run(page) -> None:
    page.evaluate(WATCH)
    page.get_by_role("button", name="Run", exact=True).first.click()


def ended(page, event: str) -> None:
    """Wait until the run ends, with that event."""
    page.wait_for_function("() => window.ended", timeout=SECONDS * 1000)
    assert page.evaluate("() => window.ended.event") == event, page.evaluate("() => window.ended")


def run(page) -> None:
    """Press Run, and wait for the end."""
    press_run(page)
    ended(page, "execution_success")
    page.wait_for_timeout(1500)  # pictures are fetched, and nodes grow


def cancel_and_go_on(page, name: str, look) -> None:
    """Watch a long run's steps, cancel it, and let it go on for two more; it says so each time."""
    with_nano(page, 1000, name)
    press_run(page)
    page.wait_for_function(SAYS, arg=r"step \d+/1000, loss [\d.]+", timeout=SECONDS * 1000)
    look("watched")
    page.evaluate(CANCEL)
    ended(page, "execution_interrupted")
    page.wait_for_function(SAYS, arg=r"^Stopped after step \d+, saved as ")
    look("cancelled")
    step = int(re.search(r"Stopped after step (\d+)", page.evaluate(SAID))[1])
    with_nano(page, step + 2, name)
    run(page)
    assert f"goes on after step {step} of {step + 2}" in page.evaluate(SAID)


def with_nano(page, steps: int, name: str) -> None:
    """nano in place of the flavour, which serves as base and as distilled, on small pictures for a few steps."""
    files = dict.fromkeys(("transformer", "text_encoder", "vae", "variant"), "auto")
    precision = dict.fromkeys(("precision", "text_encoder_precision"), "as in file")
    small = {"width": 64, "height": 64, "steps": 2}
    for kind, values in {
        "Flux2Load": {"flavour": "nano", **files, **precision}, "Flux2DatasetFolder": {"resolution": 64},
        "Flux2LoraTrainer": {"steps": steps, "name": name, "rank": 4, "validation_items": 0},
        "Flux2Validation": {**small, "every": 0, "at_start": False}, "Flux2CompareLoras": small, "Flux2Sampler": small,
    }.items():  # fmt: skip
        page.evaluate(SET, [kind, values])


@pytest.mark.drawn
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda each: each.slug)
def test_no_node_lies_over_another_at_open_and_no_wire_runs_under_one(page, renderer, template, look):
    open_graph(page, graph_of(template))
    found = boxes(page, renderer)
    look(f"{template.slug}, {renderer}")
    assert overlapping(found) == []
    groups = page.evaluate("() => app.graph._groups.map(group => [...group.pos, ...group.size])")
    for node in found:
        x, y, width, height = node["box"]
        assert any(gx <= x and x + width <= gx + w and gy <= y and y + height <= gy + h for gx, gy, w, h in groups), (
            node
        )
    if renderer == "canvas":
        page.evaluate("() => app.canvas.draw(true, true)")
        paths, under = page.evaluate(UNDER)
        assert paths >= len(graph_of(template)["links"]) and under == []


def test_the_quick_start_is_opened_run_and_still_clear(page, renderer, look):
    open_template(page, QUICK_START.title)
    page.wait_for_function("() => app.canvas.ds.scale >= 0.62")  # at which its texts can be read
    look(f"quick start opened, {renderer}")
    with_nano(page, 4, f"quick start {renderer}")
    run(page)
    look(f"quick start after its run, {renderer}")
    found = boxes(page, renderer)
    assert overlapping(found) == []
    grown = {each["type"]: each["box"][3] for each in found}
    assert min(grown[kind] for kind in ("Flux2DatasetFolder", "Flux2LoraTrainer", "Flux2CompareLoras")) > 400, grown


def test_a_seed_stays_what_it_is_where_a_change_would_train_or_crop_anew(page):
    """A run changes no value of a fresh node but the seeds of those that paint."""
    fresh = "type => { const node = LiteGraph.createNode(type); return node.widgets.map(w => [w.name, w.value]) }"
    assert dict(page.evaluate(fresh, "Flux2LoraTrainer"))["seed"] == 0
    assert "fixed" in dict(page.evaluate(fresh, "Flux2LoraTrainer")).values()
    for kind in ("Flux2CaptionOptions", "Flux2CropOptions"):
        names = [name for name, _ in page.evaluate(fresh, kind)]
        assert "seed" in names and not {"control_after_generate", "fixed", "randomize"} & set(names)


FACES = {
    "Flux2LoraTrainer": {
        "name", "steps", "rank", "learning_rate", "preservation", "differential_guidance", "offload", "recipe", "seed",
    },
    "Flux2DatasetFolder": {"folder", "resolution", "trigger", "class_word"},
    "Flux2Load": {"flavour", "precision"},
}  # fmt: skip


@pytest.mark.parametrize("kind", FACES)
def test_a_nodes_face_has_what_most_people_change(page, kind):
    shown = page.evaluate("""type => {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        const names = node.widgets.filter(w => node.isWidgetVisible(w) && w.type !== 'button').map(w => w.name)
        app.graph.remove(node)
        return names
    }""", kind)  # fmt: skip
    assert set(shown) - {"fixed", "control_after_generate", "flux2_pictures"} == FACES[kind]


@pytest.mark.slow
@pytest.mark.parametrize("template", TEMPLATES[1:], ids=lambda each: each.slug)
def test_every_template_runs_with_nano(page, renderer, template, look):
    """Opened, queued, watched, cancelled, resumed, and still clear; a LoRA to go on from is trained first."""
    if template.slug in ("flux2_lora_compare", "flux2_lora_continue"):
        open_graph(page, graph_of(TEMPLATES[2]))
        with_nano(page, 1, "zbot_klein-4b")
        run(page)
    open_template(page, template.title)
    name = f"{template.slug} {renderer}"
    if template.slug == "flux2_lora_compare":  # which trains nothing
        with_nano(page, 2, name)
        run(page)
    else:
        cancel_and_go_on(page, name, lambda when: look(f"{template.slug} {when}, {renderer}"))
    look(f"{template.slug} after its run, {renderer}")
    assert overlapping(boxes(page, renderer)) == []
    assert {node["class_type"] for node in queued(page).values()} == {
        node["class_type"] for node in shipped(template.slug).values()
    }
    assert NOTE not in str(queued(page))
