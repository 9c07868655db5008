"""ComfyUI's frontend in a real browser: open it, put a graph into it, press Run, read what nodes show."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
EXTENSIONS = [path.stem for path in (Path(__file__).resolve().parents[2] / "web").glob("*.js")]
READY = "names => window.app?.graph && names.every(n => app.extensions.some(e => e.name === 'flux2_train.' + n))"
# What our widget on a node says, whether its picture is drawn, and its box and its node's on the page or the canvas.
SHOWN = """id => {
    const node = app.graph.getNodeById(Number(id)), widget = node?.widgets?.find(w => w.name === 'flux2_shown')
    if (!widget) return { text: '', lines: 0, picture: 0, fits: true }
    const text = widget.element.querySelector('.text'), image = widget.element.querySelector('img')
    const inner = widget.element.getBoundingClientRect()
    const vue = document.querySelector(`[data-node-id="${id}"]`)
    const { scale, offset } = app.canvas.ds, page = app.canvas.canvas.getBoundingClientRect()
    const outer = vue ? vue.getBoundingClientRect() : {
        left: page.left + (node.pos[0] + offset[0]) * scale, top: page.top + (node.pos[1] + offset[1] - 30) * scale,
        right: page.left + (node.pos[0] + node.size[0] + offset[0]) * scale,
        bottom: page.top + (node.pos[1] + node.size[1] + offset[1]) * scale }
    const within = inner.left >= outer.left - 1 && inner.right <= outer.right + 1 && inner.bottom <= outer.bottom + 1
        && inner.top >= outer.top - 1
    return { text: widget.value, lines: text.children.length, picture: image.naturalWidth,
             wraps: text.scrollWidth <= text.clientWidth + 1, drawn: inner.height, fits: within }
}"""
WATCH = """() => {
    window.flux2Ended = ''
    const api = window.comfyAPI.api.api
    if (window.flux2Watching) return
    window.flux2Watching = true
    for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
        api.addEventListener(kind, () => { window.flux2Ended = kind })
}"""
TOLD = """text => [...document.body.querySelectorAll('*')].some(each =>
    !each.childElementCount && each.textContent.includes(text) && !each.closest('.flux2-shown'))"""
LOOK_AT = """([id, scale]) => {
    app.canvas.ds.scale = scale
    app.canvas.centerOnNode(app.graph.getNodeById(Number(id)))
    app.canvas.draw(true, true)
}"""

# The frontend's badge of running jobs pulses, which takes most of a core while a graph runs: animations end at once.
STILL = """() => document.addEventListener('DOMContentLoaded', () => {
    const style = document.createElement('style')
    style.textContent = `*, *::before, *::after { animation-duration: 1ms !important; animation-delay: 0s !important;
        animation-iteration-count: 1 !important; transition-duration: 0s !important; transition-delay: 0s !important }`
    document.head.append(style)
})"""

# An element's box, once it has been the same for ten frames.
STEADY = """element => new Promise(done => {
    let last = '', same = 0
    const look = () => {
        const { x, y, width, height } = element.getBoundingClientRect(), now = [x, y, width, height].join()
        same = now === last ? same + 1 : 0
        last = now
        same < 10 ? requestAnimationFrame(look) : done({ x, y, width, height })
    }
    look()
})"""


@contextmanager
def browser():
    """A Chromium, or the test is skipped."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome was found (on Debian: apt install chromium)")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield opened
        opened.close()


def open_page(context, server, vue: bool):
    """The frontend, opened by somebody who has been there before, with one of its two renderers of nodes.

    The first visit would show a tour.
    """
    server.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": vue})
    page = context.new_page()
    page.add_init_script(f"({STILL})()")
    page.set_default_timeout(120_000)  # a slow machine that runs other tests beside this one
    page.goto(server.url)
    page.wait_for_function(READY, arg=EXTENSIONS)
    return page


def open_tab(context, server, vue: bool):
    """``open_page``, once the default workflow is there, which would come later."""
    page = open_page(context, server, vue)
    page.wait_for_function("() => app.graph._nodes.length > 0")
    return page


def load(page, prompt: dict, workflow: str = "") -> None:
    """Put a graph in API format on the canvas, under the id of a workflow."""
    page.evaluate("prompt => app.loadApiJson(prompt, 'tried')", json.loads(json.dumps(prompt)))
    page.wait_for_function("count => app.graph._nodes.length === count", arg=len(prompt))
    if workflow:
        page.evaluate("id => app.loadGraphData({ ...app.graph.serialize(), id })", workflow)
        page.wait_for_function("id => app.graph.id === id", arg=workflow)


def press_run(page) -> None:
    """Queue what is on the canvas as the button Run does."""
    page.evaluate(WATCH)
    page.evaluate("() => app.queuePrompt(0, 1)")


def run(page) -> str:
    """Queue what is on the canvas, and wait for the end. Returns the kind of its last event."""
    press_run(page)
    page.wait_for_function("() => window.flux2Ended")
    return page.evaluate("() => window.flux2Ended")


def shown(page, node: str, until: str = "") -> dict:
    """What a node shows, once its text matches the regular expression ``until``."""
    if until:
        page.wait_for_function(
            "([id, pattern]) => new RegExp(pattern).test(app.graph.getNodeById(Number(id))?.widgets"
            "?.find(w => w.name === 'flux2_shown')?.value ?? '')",
            arg=[node, until],
        )
    page.evaluate(LOOK_AT, [node, 0.9])
    page.wait_for_timeout(400)  # frames in which the widget finds its place
    return page.evaluate(SHOWN, node)


def says(page, text: str) -> None:
    """Wait for a toast with that text in it: the frontends name toasts differently, so anything but a node's own."""
    page.wait_for_function(TOLD, arg=text)


def steady_box(locator) -> dict:
    """The box of an element on the page once it lies still: widgets follow the canvas some frames later."""
    return locator.evaluate(STEADY)


def click_until(page, place, opened, count: int = 1) -> None:
    """Click at ``place()`` until the locator ``opened`` is seen, as a person clicks once more where the view moved."""
    for _ in range(10):
        page.mouse.click(*place(), click_count=count)
        for _ in range(50):
            if opened.first.is_visible():
                return
            page.wait_for_timeout(100)
        page.keyboard.press("Escape")
    raise AssertionError("ten clicks opened nothing")


def clear_toasts(page) -> None:
    page.evaluate("() => app.extensionManager.toast.removeAll?.()")


def photograph(page, folder: Path, name: str) -> None:
    """Keep a picture of the page, to be looked at: with ``--screenshots`` or ``--all``."""
    if not os.environ.get("FLUX2_TEST_SCREENSHOTS"):
        return
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")
