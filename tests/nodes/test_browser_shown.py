"""What nodes show in the browser: texts that stay, mistakes in words, files before a run; in both renderers.

On the frontend that ComfyUI pins, and under --all on the newest one. Pictures of each are kept in the test's folder.
"""

import copy
import uuid

import pytest
from browsing import clear_toasts, load, open_tab, photograph, press_run, run, says, shown
from demo import quick_start
from frontend import server_of
from mistakes import DATA, EMBEDS, GRAPH, LATENTS, LOAD, MISTAKES, TRAINER, write_files

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.long]
BEFORE = [each for each in MISTAKES if each.input]
WHILE = [each for each in MISTAKES if not each.input]


SLOW = pytest.mark.slow


@pytest.fixture(scope="module", params=[
    "pinned", *(pytest.param(name, marks=SLOW) for name in ("pinned, vue", "newest", "newest, vue")),
])  # fmt: skip
def tab(request, chromium):
    """(page, server, name) of a frontend in one of its renderers."""
    name = request.param
    server = server_of(request)
    write_files(server.folder)
    context = chromium.new_context(viewport={"width": 1600, "height": 1000}, locale="en-US")
    yield open_tab(context, server, "vue" in name), server, name.replace(", ", "_")
    context.close()
    server.post("/settings", {"Comfy.VueNodes.Enabled": False})


def graph(name, **trainer):
    """GRAPH for a run of that name, and an id for its workflow."""
    prompt = copy.deepcopy(GRAPH)
    workflow = str(uuid.uuid4())
    prompt[TRAINER]["inputs"].update({"name": name, **trainer})
    prompt[DATA]["inputs"]["prompt"] = workflow  # changes nothing, but else ComfyUI answers from its cache
    return prompt, workflow


def assert_shown(page, node, words, picture):
    """A node's text is drawn inside the node, with its lines, and so is its picture."""
    found = shown(page, node, words)
    assert found["fits"] and found["wraps"] and found["drawn"] > 10, (node, found)
    assert found["lines"] == len(found["text"].split("\n"))
    assert bool(found["picture"]) == picture, (node, found)


EMPTY = {"version": 0.4, "last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "groups": []}
STAYS = {
    LOAD: ("flux2-nano", False), DATA: ("3 images x 1 from robot", True), EMBEDS: ("captions: ", False),
    LATENTS: ("3 images: ", False), TRAINER: (r"\.safetensors: loaded back by ComfyUI's LoRA loader: all 28", False),
}  # fmt: skip


def test_what_nodes_say_stays_after_the_run_and_after_a_reload(tab, tmp_path):
    page, _, name = tab
    prompt, workflow = graph(f"stays_{name}", validation_items=2)
    prompt[DATA]["inputs"].update(trigger="", class_word="")  # which is worth a warning
    load(page, prompt, workflow)
    assert run(page) == "execution_success"
    for node, (words, picture) in STAYS.items():
        assert_shown(page, node, words, picture)
        photograph(page, tmp_path, f"{name}_{node}")
    warned = shown(page, DATA)["text"].split("\n")
    first_calm = next(number for number, line in enumerate(warned) if not line.startswith("warning: "))
    assert first_calm and not any(line.startswith("warning: ") for line in warned[first_calm:])
    page.wait_for_timeout(1500)  # the frontend keeps a draft of the workflow, from which it is restored
    page.reload()
    page.wait_for_function("count => window.app?.graph?._nodes?.length === count", arg=len(prompt))
    for node, (words, picture) in STAYS.items():
        assert_shown(page, node, words, picture)
    photograph(page, tmp_path, f"{name}_reloaded")


def test_a_run_opened_from_the_queue_panel_shows_its_texts_again(tab, tmp_path):
    """Opened with the mouse, as a person does, while another graph is on the canvas."""
    page, _, name = tab
    prompt, workflow = graph(f"history_{name}")
    load(page, {DATA: prompt[DATA]}, workflow)
    assert run(page) == "execution_success"
    page.evaluate("graph => app.loadGraphData(graph)", EMPTY)
    page.wait_for_function("() => !app.graph._nodes.length")
    page.get_by_test_id("queue-overlay-toggle").click()
    page.locator("[data-job-id]").first.click(button="right")
    page.get_by_text("Open as workflow in new tab").click()
    page.wait_for_function("id => app.graph.id === id && app.graph._nodes.length === 1", arg=workflow)
    assert_shown(page, DATA, "3 images x 1 from robot", True)
    photograph(page, tmp_path, f"{name}_history")
    page.get_by_test_id("queue-overlay-toggle").click()


def test_mistakes_are_said_in_the_toast(tab, tmp_path):
    """Every one in the first renderer; in the others one of each kind."""
    page, _, name = tab
    for mistake in [*BEFORE, *WHILE] if name == "pinned" else [BEFORE[1], BEFORE[5], WHILE[0]]:
        clear_toasts(page)
        load(page, mistake.graph())
        press_run(page)
        says(page, mistake.says)
        if mistake.input:
            marked = page.evaluate("() => Object.keys(app.lastNodeErrors ?? {})")
            assert mistake.node in marked or not marked, mistake.name
        else:
            page.wait_for_function("() => window.flux2Ended === 'execution_error'")
    photograph(page, tmp_path, f"{name}_mistake")
    clear_toasts(page)


def test_cancel_says_what_was_saved_and_that_run_goes_on(tab, tmp_path):
    page, server, name = tab
    prompt, workflow = graph(f"cancelled_{name}", steps=100_000)
    load(page, prompt, workflow)
    press_run(page)
    going = shown(page, TRAINER, r"step \d+/100000, loss [\d.]+, [\d.]+ s/step, [\d:]+:\d\d left")
    assert going["fits"]
    server.post("/interrupt", {})
    page.wait_for_function("() => window.flux2Ended === 'execution_interrupted'")
    file = rf"cancelled_{name}_step\d+\.safetensors"
    ended = shown(page, TRAINER, rf"^Stopped after step \d+, saved as {file}\. Run goes on from here\.")
    assert "left" not in ended["text"].split("\n")[0]
    says(page, "Run goes on from here.")
    page.locator(".flux2-run .where").get_by_text("cancelled").wait_for()
    photograph(page, tmp_path, f"{name}_cancelled")
    clear_toasts(page)


def test_a_second_tab_shows_texts_and_pictures(tab, tmp_path):
    page, server, name = tab
    prompt, workflow = graph(f"second_{name}", steps=100_000)
    other = open_tab(page.context, server, "vue" in name)
    try:
        for each in (page, other):
            load(each, prompt, workflow)
        press_run(page)
        assert shown(other, TRAINER, r"step \d+/100000")["fits"]
        assert shown(other, DATA, "3 images x 1 from robot")["picture"]
        photograph(other, tmp_path, f"{name}_second_tab")
    finally:
        server.post("/interrupt", {})
        page.wait_for_function("() => window.flux2Ended")
        other.close()
        clear_toasts(page)


def test_load_flux2_says_which_files_are_there_before_anything_is_queued(tab, tmp_path):
    page, _, name = tab
    load(page, {LOAD: GRAPH[LOAD]})
    assert_shown(page, LOAD, r"good: transformer: .*\n(.*\n){4,}1024 px, rank 16", False)
    page.evaluate("""() => {
        const widget = app.graph._nodes[0].widgets.find(({ name }) => name === 'flavour')
        widget.value = 'klein-9b'
        widget.callback(widget.value)
    }""")
    assert_shown(page, LOAD, r"flux-2-klein-base-9b.safetensors is missing.*gated(.*\n)+512 px", False)
    assert page.locator(".flux2-shown a[href^='https://huggingface.co/']").count() >= 3
    photograph(page, tmp_path, f"{name}_files")


def test_the_demos_address_opens_the_quick_start(tab):
    page, server, _ = tab
    page.goto(quick_start(server))
    page.wait_for_function("() => window.app?.graph?._nodes?.some(n => n.type === 'Flux2LoraTrainer') && "
                           "app.graph._nodes.some(n => n.type === 'Flux2Load')")  # fmt: skip
