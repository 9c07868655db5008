"""The panel of a run in ComfyUI's frontend: every button, a reload, a second tab, another graph in a pause, themes.

On the frontend that ComfyUI pins, in its older renderer; under --all in the newer one and on the newest frontend too.
"""

import psutil
import pytest
from axe import serious_findings
from browsing import WATCH, clear_toasts, load, open_tab, photograph, run, says, steady_box
from mistakes import TRAINER, write_files
from panels import FITS, IN_SIGHT, LIGHT, begin, graph, look, press, state, tab_to, until

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.long]
SLOW = pytest.mark.slow
OTHER = {"1": {"class_type": "PrimitiveInt", "inputs": {"value": 3}},
         "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}}  # fmt: skip


@pytest.fixture(scope="module", params=[
    "pinned", *(pytest.param(name, marks=SLOW) for name in ("pinned, vue", "newest", "newest, vue")),
])  # fmt: skip
def tab(request, chromium):
    """(page, server, name) of a frontend in one of its renderers."""
    name = request.param
    server = request.getfixturevalue("newest_server" if "newest" in name else "server")
    write_files(server.folder)
    psutil.Process(server.process.pid).nice(10)  # the runs here have no end: the browser comes first
    context = chromium.new_context(viewport={"width": 1600, "height": 1400}, locale="en-US")
    page = open_tab(context, server, "vue" in name)
    page.set_default_timeout(100_000)
    yield page, server, name.replace(", ", "_")
    context.close()
    server.post("/settings", {"Comfy.VueNodes.Enabled": False})


@pytest.fixture
def training(tab):
    """(page, server, name, state) of a run in progress; it is cancelled afterwards if it still trains."""
    page, server, name = tab
    number = training.count = getattr(training, "count", 0) + 1
    yield page, server, name, begin(page, *graph(f"panel_{name}_{number}"))
    clear_toasts(page)
    server.post("/interrupt", {})
    page.wait_for_function("() => window.flux2Ended")


def test_every_button_acts_within_a_step(training, tmp_path):
    page, server, name, begun = training
    assert begun["total"] == 100_000 and begun["previews"] == [0] and begun["validation"] == 1 and begun["drawn"] > 100
    look(page, tmp_path, f"{name}_training")
    assert page.evaluate(FITS, TRAINER)
    press(page, "Preview now")
    painted = until(page, "s.previews.length === 2")["previews"]
    press(page, "Save now")
    until(page, "s.checkpoints.length > 0")
    press(page, "Change …")
    page.locator(".flux2-run").get_by_label("learning rate").fill("0.0005")
    page.locator(".flux2-run").get_by_label("steps", exact=True).fill("90000")
    page.locator(".flux2-run textarea").fill("zbot on red\na green hat, never encoded before")
    press(page, "Apply")
    changed = until(page, "s.notes.length && s.rate === 0.0005")
    assert changed["total"] == 90_000 and changed["prompts"][1].startswith("a green hat")
    press(page, "Preview now")
    more = until(page, "s.previews.length === 3 && s.labels.length === 3")
    assert more["labels"] == ["zbot on red", "a blue owl", "a green hat, never encoded before"]
    assert not more["warnings"] and more["previews"][:2] == painted
    for _ in range(2):
        press(page, "next prompt")
    page.wait_for_function("() => [...document.querySelectorAll('.flux2-run .slider img')].every(i => i.naturalWidth)")
    look(page, tmp_path, f"{name}_previews")
    press(page, "Stop and keep")
    page.wait_for_function("() => window.flux2Ended === 'execution_success'")
    ended = until(page, "s.status === 'finished'")
    assert ended["step"] == ended["total"] == ended["points"]
    assert (server.folder / "models" / "loras" / f"{ended['run']}.safetensors").is_file()
    page.evaluate(LIGHT, "light")
    look(page, tmp_path, f"{name}_finished_light")
    page.evaluate(LIGHT, "dark")


def test_the_slider_is_dragged_and_pictures_and_panel_open_large(training, tmp_path):
    page, _, name, _ = training
    page.evaluate("id => app.canvas.centerOnNode(app.graph.getNodeById(Number(id)))", TRAINER)
    slider = page.locator(".flux2-run .slider")
    page.wait_for_function("() => [...document.querySelectorAll('.flux2-run .slider img')].every(i => i.naturalWidth)")
    box = steady_box(slider)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 40, steps=5)
    page.mouse.up()
    assert 15 <= float(page.locator(".flux2-run .slider input").input_value()) <= 25
    assert "20" <= slider.locator("img.over").evaluate("image => image.style.clipPath.match(/(\\d+)%/)[1]") <= "24"
    press(page, "full size")
    dialog = page.locator("dialog.flux2-full")
    assert dialog.locator("img").count() == 2
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    press(page, "enlarge")
    page.wait_for_function("() => document.querySelector('dialog.flux2-full canvas')?.width > 400")
    page.wait_for_timeout(500)
    photograph(page, tmp_path, f"{name}_large")
    assert serious_findings(page, "dialog.flux2-full") == []
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")


def test_a_reload_and_a_second_tab_show_the_run_as_it_is(training, tmp_path):
    page, server, name, _ = training
    before = until(page, "s.step > 10")
    page.wait_for_timeout(1500)  # the frontend keeps a draft of the workflow, from which it is restored
    page.reload()
    after = until(page, f"s.trains && s.step >= {before['step']}")
    assert after["run"] == before["run"] and after["points"] == after["step"] and after["previews"] == [0]
    other = open_tab(page.context, server, "vue" in name)
    try:
        found = until(other, f"s.trains && s.step > {after['step']}")
        assert found["run"] == before["run"] and found["points"] == found["step"]
        look(other, tmp_path, f"{name}_second_tab")
        page.evaluate(WATCH)
    finally:
        other.close()


def test_a_pause_frees_the_server_for_another_graph_and_go_on_goes_on(training, tmp_path):
    page, _, name, _ = training
    drawn = page.evaluate("() => app.graph.serialize()")
    press(page, "Pause")
    page.wait_for_function("() => window.flux2Ended === 'execution_interrupted'")
    says(page, "Go on queues the same graph.")
    paused = until(page, "s.status === 'paused' && !s.trains")
    look(page, tmp_path, f"{name}_paused")
    load(page, OTHER)
    assert run(page) == "execution_success"
    page.evaluate("graph => app.loadGraphData(graph)", drawn)
    again = until(page, "s.status === 'paused'")  # opened again, the graph shows its run
    assert again["run"] == paused["run"] and again["points"] == paused["step"]
    page.evaluate("() => { window.flux2Ended = '' }")
    press(page, "Go on")
    went_on = until(page, f"s.trains && s.step > {paused['step']}")
    assert went_on["notes"] == [f"went on after step {paused['step']}"] and went_on["points"] == went_on["step"]
    look(page, tmp_path, f"{name}_went_on")


def test_the_keyboard_alone_steers_and_what_is_refused_is_said(training, tmp_path):
    page, _, name, _ = training
    page.evaluate("id => app.canvas.centerOnNode(app.graph.getNodeById(Number(id)))", TRAINER)
    steady_box(page.locator(".flux2-run .plot"))
    page.locator(".flux2-run .plot").focus()
    tab_to(page, "▶")
    page.keyboard.press("Enter")
    page.locator(".flux2-run .previews .label").get_by_text("a blue owl").wait_for()
    tab_to(page, "Save now")
    page.keyboard.press("Space")
    until(page, "s.checkpoints.length > 0")
    page.evaluate("() => { app.canvas.ds.offset[1] += 600; app.canvas.setDirty(true, true) }")  # below the window
    page.wait_for_function(f"() => !({IN_SIGHT})()")
    tab_to(page, "Change …")
    page.wait_for_function(IN_SIGHT)  # the graph has followed
    page.keyboard.press("Enter")  # the form opens, and its first field has the focus
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("1")
    tab_to(page, "Apply")
    page.wait_for_function(IN_SIGHT)
    photograph(page, tmp_path, f"{name}_keyboard")
    assert serious_findings(page, ".flux2-run") == []
    page.keyboard.press("Enter")
    warned = until(page, "s.warnings.length === 1")["warnings"]
    assert "steps are done already: steps was not changed to 1." in warned[0]
    assert state(page)["total"] == 100_000
