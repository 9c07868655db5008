"""The templates as a newcomer meets them: opened in the browser in both renderers, measured, run, and looked at.

Screenshots lie in ``screenshots0`` of the tests' temporary folder.
"""

import json

import pytest
from comfy_server import ComfyServer
from frontend import (
    RENDERERS,
    WORKFLOWS,
    boxes,
    frontend,
    open_graph,
    open_template,
    overlapping,
    queued,
    shipped,
    use_renderer,
)
from newest_frontend import newest_frontend
from workflow_files import NOTE
from workflow_templates import TEMPLATES

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.long]
QUICK_START = TEMPLATES[0]
SECONDS = 900
# Every place, on a grid inside the nodes, where a wire is drawn under one: [node, x, y].
UNDER = """() => {
    const paths = [...app.graph.links.values(), ...app.graph.reroutes.values()].map(each => each.path).filter(Boolean)
    const context = new OffscreenCanvas(1, 1).getContext('2d'), edge = 14, step = 7, found = []
    context.lineWidth = step * 1.5
    for (const node of app.graph._nodes)
        for (let x = node.pos[0] + edge; x < node.pos[0] + node.size[0] - edge; x += step)
            for (let y = node.pos[1] - 30; y < node.pos[1] + node.size[1]; y += step)
                if (paths.some(path => context.isPointInStroke(path, x, y))) found.push([node.title, x, y])
    return [paths.length, found]
}"""
SET = """([type, values]) => {
    for (const node of app.graph._nodes.filter(n => n.type === type))
        for (const [name, value] of Object.entries(values)) node.widgets.find(w => w.name === name).value = value
}"""
WATCH = """() => {
    window.ended = null
    for (const event of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(event, ({ detail }) => { window.ended = { event, detail } }, { once: true })
}"""


@pytest.fixture(scope="module", params=["pinned", pytest.param("newest", marks=pytest.mark.slow)])
def page(request, tmp_path_factory):
    """The frontend that this ComfyUI pins, or the newest known one, on a screen that shows every node."""
    if request.param == "pinned":
        with frontend(request.getfixturevalue("server"), 2600, 1600) as opened:
            yield opened
        return
    folder = tmp_path_factory.mktemp("newest")
    newest = ComfyServer(folder, "--front-end-root", str(newest_frontend()))
    with newest as server, frontend(server, 2600, 1600) as opened:
        yield opened


@pytest.fixture
def look(request, page, screenshots):
    """``look(name)`` takes a screenshot."""
    newest = "" if request.node.callspec.params["page"] == "pinned" else ", newest"
    return lambda name: page.screenshot(path=screenshots / f"{name}{newest}.png")


@pytest.fixture(params=RENDERERS)
def renderer(request, page):
    use_renderer(page, request.param)
    yield request.param
    use_renderer(page, "canvas")


def graph_of(template) -> dict:
    return json.loads((WORKFLOWS / f"{template.title}.json").read_text())


def run(page) -> dict:
    """Press Run, and wait for the end."""
    page.evaluate(WATCH)
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.wait_for_function("() => window.ended", timeout=SECONDS * 1000)
    ended = page.evaluate("() => window.ended")
    assert ended["event"] == "execution_success", ended
    page.wait_for_timeout(1500)  # pictures are fetched, and nodes grow
    return ended


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


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda each: each.slug)
def test_no_node_lies_over_another_at_open(page, renderer, template, look):
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


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda each: each.slug)
def test_no_wire_runs_under_a_node(page, template):
    open_graph(page, graph_of(template))
    page.evaluate("() => app.canvas.draw(true, true)")
    paths, found = page.evaluate(UNDER)
    assert paths >= len(graph_of(template)["links"]) and found == []


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
    """Opened from the browser, queued, and still clear after its run; a LoRA to go on from is trained first."""
    if template.slug in ("flux2_lora_compare", "flux2_lora_continue"):
        open_graph(page, graph_of(TEMPLATES[2]))
        with_nano(page, 1, "zbot_klein-4b")
        run(page)
    open_template(page, template.title)
    with_nano(page, 2, f"{template.slug} {renderer}")
    run(page)
    look(f"{template.slug} after its run, {renderer}")
    assert overlapping(boxes(page, renderer)) == []
    assert {node["class_type"] for node in queued(page).values()} == {
        node["class_type"] for node in shipped(template.slug).values()
    }
    assert NOTE not in str(queued(page))
