"""A run's panel in the page, away from any node: its chart is read, zoomed and keyed; nothing of a name becomes HTML.

``runPanel`` opens it for a run that has ended, of which there is only the folder.
"""

import json
import math
import re

import pytest
from axe import serious_findings
from browsing import browser, open_tab, photograph, steady_box
from PIL import Image

from flux2_train.runs.folder import RunFolder

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.long]
STEPS = range(1, 401)
EVIL = "<img src=x onerror='window.flux2Evil = 1'>"
OPEN = """async run => {
    const { api } = window.comfyAPI.api, names = await (await api.fetchApi('/extensions')).json()
    const { runPanel } = await import(api.fileURL(names.find(name => name.endsWith('/panel/run_panel.js'))))
    window.flux2Panel = runPanel(run)
    window.flux2Panel.style.cssText = 'position: fixed; left: 80px; top: 60px; width: 760px; z-index: 999999; '
        + 'transform-origin: 0 0; background: var(--comfy-menu-bg)'
    document.body.append(window.flux2Panel)
}"""
# The same with a place for a picture that it should show, and under an id of its own.
OPEN_WARNED = """async run => {
    const { api } = window.comfyAPI.api, names = await (await api.fetchApi('/extensions')).json()
    const { runPanel } = await import(api.fileURL(names.find(name => name.endsWith('/panel/run_panel.js'))))
    const panel = runPanel(run, { showPicture: name => { window.flux2Wanted = name } })
    panel.id = 'flux2-warned'
    panel.style.cssText = 'position: fixed; left: 80px; top: 60px; width: 700px; z-index: 1000000; '
        + 'background: var(--comfy-menu-bg)'
    document.body.append(panel)
}"""
# Whether the first row is the same element after the websocket has brought ``line``, and how many there are.
STAYS = """async line => {
    const panel = document.querySelector('#flux2-warned'), row = panel.querySelector('.warning')
    panel.feed.hear({ first: panel.feed.state.next, lines: [line] })
    await new Promise(done => setTimeout(done, 100))
    return [row === panel.querySelector('.warning'), panel.querySelectorAll('.warning').length]
}"""
# A feed of the run asks the server; while the answer is on its way, the websocket brings ``lines``.
OVERTAKE = """async lines => {
    const { api } = window.comfyAPI.api, names = await (await api.fetchApi('/extensions')).json()
    const { Feed } = await import(api.fileURL(names.find(name => name.endsWith('/panel/feed.js'))))
    const feed = new Feed('in_the_page', () => {})
    while (!feed.state.next || feed.asking) await new Promise(done => setTimeout(done, 20))
    const before = feed.state, { next } = before, answered = feed.refresh(next)
    feed.hear({ first: next, lines })
    await answered
    const points = feed.state.curves.loss.filter(Boolean).length
    return { kept: feed.state === before, added: feed.state.next - next, points }
}"""
SERIES = "() => [...document.querySelectorAll('.flux2-run .u-series')].map(row => row.textContent).join()"
CURSOR = "() => { const { plot } = flux2Panel.panel.chart; return plot.cursor.left / plot.over.offsetWidth }"


def lines():
    """The record of a run with everything in it that a panel shows."""
    near = {"nearest": f"{EVIL}.png", "distance": 0.31, "copied": True}
    pictures = [{"number": number, "label": f"{EVIL} {number}", "seed": 7, **near} for number in (1, 2)]
    smooth = [0.1 + 0.2 * math.exp(-step / 150) for step in STEPS]
    return [
        {"kind": "began", "at": 0, "total": 1000},
        {"kind": "plan", "text": f"plan {EVIL}", "peak": 14_000_000_000, "parts": {"weights": 9_300_000_000}},
        {"kind": "steps", "first": 1, "total": 1000, "rate": 1e-4, "loss": [0.01 + each for each in smooth],
         "smoothed": smooth, "preservation": [0.05] * 400, "seconds": [1.08] * 400},
        *({"kind": "validation", "step": step, "loss": 0.3 - step / 2500, "held_out": True} for step in (0, 250)),
        *({"kind": "preview", "step": step, "pictures": pictures} for step in (0, 250)),
        {"kind": "selectivity", "step": 250, "taught": 0.041, "leaked": 0.0044, "selectivity": 9.3},
        {"kind": "best", "step": 250},
        {"kind": "checkpoint", "step": 375}, {"kind": "warning", "text": f"09.jpg {EVIL} cannot be learned"},
        {"kind": "phase", "text": EVIL}, {"kind": "ended", "status": "stopped", "why": EVIL},
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(server):
    return server.folder / "output" / "flux2_train"


@pytest.fixture(scope="module")
def page(server, runs):
    folder = RunFolder.create(runs, "in_the_page")
    folder.note(name="in_the_page", status="stopped", step=400, total=1000, why=EVIL)
    previews = {"prompts": [{"text": EVIL}], "every": 250}
    folder.job.write_text(json.dumps({"training": {"learning_rate": 1e-4}, "previews": previews}))
    folder.record.write_text("".join(json.dumps(line) + "\n" for line in lines()))
    folder.previews.mkdir()
    for name in ("base_1", "base_2", *(f"step_{step:06d}_{n}" for step in (0, 250) for n in (1, 2))):
        Image.new("RGB", (96, 64), "teal").save(folder.previews / f"{name}.png")
    with browser() as opened:
        context = opened.new_context(viewport={"width": 1200, "height": 900}, locale="en-US")
        shown = open_tab(context, server, False)
        shown.evaluate(OPEN, "in_the_page")
        shown.wait_for_function("() => document.querySelector('.flux2-run canvas')?.width > 100")
        yield shown


def hover(page, share):
    """Move the mouse over the chart, at that share of its width."""
    box = steady_box(page.locator(".u-over"))
    page.mouse.move(box["x"] + share * box["width"], box["y"] + 30)
    page.wait_for_timeout(100)
    return box


def test_the_chart_is_read_zoomed_and_keyed(page, tmp_path):
    assert page.evaluate("() => flux2Panel.panel.chart.plot.scales.x.max") == 1000
    hover(page, 0.25)
    read = page.evaluate(SERIES)
    step = int(re.match(r"step(\d+),", read)[1])
    smooth = 0.1 + 0.2 * math.exp(-step / 150)
    assert abs(step - 250) <= 3  # a pixel of the chart is several steps
    assert f",each step{smooth + 0.01:.4f},smoothed{smooth:.4f},held-out" in read and "preservation0.0500" in read
    photograph(page, tmp_path, "hovered")
    page.mouse.down()
    hover(page, 0.35)
    page.mouse.up()
    assert page.evaluate("() => flux2Panel.panel.chart.zoomed") == pytest.approx([250, 350], abs=5)
    page.get_by_role("button", name="zoom out").click()
    page.get_by_role("button", name="log", exact=True).click()
    assert page.evaluate("() => [flux2Panel.panel.chart.zoomed, flux2Panel.panel.chart.plot.scales.y.distr]") == [
        None, 3,
    ]  # fmt: skip
    photograph(page, tmp_path, "logarithmic")
    page.mouse.move(5, 5)
    page.locator(".flux2-run .plot").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".flux2-run .plot").get_attribute("aria-label").startswith("step399, each step")
    page.get_by_role("button", name="linear", exact=True).click()


def test_an_answer_that_the_websocket_overtakes_forgets_nothing(page):
    step = {"kind": "steps", "first": 401, "total": 1000, "rate": 1e-4, "loss": [0.1], "smoothed": [0.1]}
    assert page.evaluate(OVERTAKE, [step]) == {"kept": True, "added": 1, "points": 401}


def test_a_warning_has_buttons_for_what_the_panel_can_do_about_it(page, runs):
    """They stay while it is told of others, ask the run, and are gone when it has ended."""
    folder = RunFolder.create(runs, "warned")
    folder.note(name="warned", status="running", step=20, total=90)
    folder.job.write_text(json.dumps({"training": {"learning_rate": 3e-4}}))
    bad = {"kind": "warning", "text": f"It diverges {EVIL}", "remedies": ["lower_rate", "save", "fly"],
           "pictures": [f"{EVIL}.png"]}  # fmt: skip
    folder.record.write_text("".join(json.dumps(line) + "\n" for line in ({"kind": "began", "total": 90}, bad)))
    with folder.held():
        page.evaluate(OPEN_WARNED, "warned")
        row = page.locator("#flux2-warned .warning")
        half = row.get_by_role("button", name="Halve the learning rate to 0.00015")
        half.wait_for()
        assert row.get_by_role("button").all_inner_texts() == [
            "Halve the learning rate to 0.00015", "Save now", f"Show {EVIL}.png",
        ]  # fmt: skip
        assert page.evaluate(STAYS, {"kind": "warning", "text": "another"}) == [True, 2]
        half.click()
        page.locator("#flux2-warned .said").get_by_text("Changed from the next step on.").wait_for()
        (asked,) = folder.asked.iterdir()
        assert json.loads(asked.read_text())["change"]["learning_rate"] == 1.5e-4
        row.get_by_role("button", name="Show").click()
        assert page.evaluate("() => window.flux2Wanted") == f"{EVIL}.png"
    page.evaluate("() => document.querySelector('#flux2-warned').feed.hear({ first: 99, lines: [] })")
    half.wait_for(state="hidden")
    assert row.first.get_by_role("button").all_inner_texts() == [f"Show {EVIL}.png"]
    page.evaluate("() => { const panel = document.querySelector('#flux2-warned'); panel.close(); panel.remove() }")


def test_what_the_trigger_changes_is_a_line_of_words_and_a_curve_of_its_own(page):
    words = "selectivity 9.3 (change 0.041 with the trigger, 0.0044 without) · best so far: step 250"
    assert page.locator(".flux2-run .learned").text_content() == words
    assert "selectivity9.3000" in page.evaluate(SERIES)
    scales = page.evaluate("() => { const s = flux2Panel.panel.chart.plot.scales; return [s.y.max, s.times.max] }")
    assert scales[0] < 1 < 9.3 < scales[1]  # beside the losses, not above them


def test_the_nearest_training_picture_of_a_preview_is_named(page):
    assert page.locator(".flux2-run .near").text_content() == f"⚠ copies the training picture {EVIL}.png, distance 0.31"


def test_the_chart_is_read_where_the_graph_is_zoomed(page):
    page.evaluate("() => { flux2Panel.style.transform = 'scale(0.6)' }")
    hover(page, 0.5)
    assert page.evaluate(CURSOR) == pytest.approx(0.5, abs=0.02)
    page.evaluate("() => { flux2Panel.style.transform = '' }")


def test_nothing_of_a_name_a_prompt_or_a_warning_becomes_html(page):
    panel = page.locator(".flux2-run")
    assert panel.get_by_text(EVIL).count() >= 3
    panel.locator("summary").click()
    panel.get_by_role("button", name="full size").click()
    page.wait_for_timeout(200)
    assert page.locator("dialog.flux2-full").get_by_text(EVIL).count() == 1
    page.keyboard.press("Escape")
    assert page.evaluate("() => [window.flux2Evil, document.querySelectorAll('img[src=x]').length]") == [None, 0]


def test_what_can_be_pressed_has_a_name_and_an_ended_run_has_no_buttons_to_steer(page):
    nameless = """() => [...flux2Panel.querySelectorAll('button, input, textarea, summary')].filter(each =>
        !(each.getAttribute('aria-label') || each.textContent.trim() || each.labels?.length)).map(e => e.outerHTML)"""
    assert page.evaluate(nameless) == []
    visible = page.evaluate("""() => [...flux2Panel.querySelectorAll('.buttons button')].filter(b => b.offsetParent)
        .map(b => b.textContent)""")
    assert visible == []


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_a_screen_reader_and_a_keyboard_find_their_way(page, colours):
    """axe-core has no serious finding about the panel and its pictures in full size."""
    page.evaluate("name => app.extensionManager.setting.set('Comfy.ColorPalette', name)", colours)
    assert serious_findings(page, ".flux2-run") == []
    page.locator(".flux2-run").get_by_role("button", name="full size").click()
    assert serious_findings(page, "dialog.flux2-full") == []
    page.keyboard.press("Escape")
