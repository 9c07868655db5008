"""ComfyUI's own frontend in a real browser, for tests: opened, switched between its renderers, asked what it shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browsing import browser, open_page

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
PACK = "comfyui-flux2-train"
PROMPT = "async () => (await app.graphToPrompt()).output"
RENDERERS = {"canvas": False, "newer nodes": True}
FRONTENDS = ["pinned", pytest.param("newest", marks=pytest.mark.slow)]  # of a fixture that asks server_of
# Every node's rectangle with its title, in the graph's units; what the newer renderer shows is measured on the page.
BOXES = """newer => app.graph._nodes.map(node => {
    let box = [node.pos[0], node.pos[1] - 30, node.size[0], node.size[1] + 30]
    if (newer) {
        const { scale, offset } = app.canvas.ds, page = app.canvas.canvas.getBoundingClientRect()
        const shown = document.querySelector(`[data-node-id='${node.id}']`).getBoundingClientRect()
        box = [(shown.left - page.left) / scale - offset[0], (shown.top - page.top) / scale - offset[1],
               shown.width / scale, shown.height / scale]
    }
    return { id: node.id, type: node.type, title: node.title, box }
})"""
GROUPS = "() => app.graph._groups.map(group => [...group.pos, ...group.size])"


def server_of(request):
    """The server with the frontend that a fixture's parameter names: the one ComfyUI pins, or the newest known."""
    return request.getfixturevalue("newest_server" if request.param.startswith("newest") else "server")


@contextmanager
def frontend(server, width: int = 1600, height: int = 1000, locale: str = "en-US") -> Iterator:
    """The frontend's page, opened by somebody who has been there before: the first visit shows a tour.

    ``locale`` is the browser's language, in which ComfyUI shows itself.
    """
    with browser() as opened:
        yield open_page(opened.new_context(viewport={"width": width, "height": height}, locale=locale), server, False)


def use_renderer(page, name: str) -> None:
    """Switch between the older renderer, which draws on a canvas, and the newer one, whose nodes are HTML."""
    page.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", RENDERERS[name])


def shipped(slug: str) -> dict:
    """A template as a script queues it."""
    return json.loads((WORKFLOWS / "api" / f"{slug}.json").read_text())


def queued(page) -> dict:
    """What the button Run would send."""
    return page.evaluate(PROMPT)


def open_graph(page, graph: dict) -> None:
    """Open a workflow as dropping its file does, and close the dialog that lists missing models."""
    page.evaluate("graph => app.loadGraphData(graph)", graph)
    page.wait_for_function("count => app.graph._nodes.length === count", arg=len(graph["nodes"]))
    page.keyboard.press("Escape")


def open_template(page, title: str) -> None:
    """Open a template as a person does: Templates, our pack, its card."""
    page.get_by_text("Templates", exact=True).first.click()
    dialog = page.locator("[role=dialog]")
    dialog.get_by_text(PACK, exact=True).click()
    dialog.get_by_test_id(f"template-workflow-{title}").click()
    dialog.wait_for(state="hidden")
    nodes = json.loads((WORKFLOWS / f"{title}.json").read_text())["nodes"]
    page.wait_for_function("count => app.graph._nodes.length === count", arg=len(nodes))


def boxes(page, renderer: str) -> list[dict]:
    """(x, y, width, height) of every node, as the frontend shows them now."""
    if RENDERERS[renderer]:
        page.wait_for_function("() => app.graph._nodes.every(n => document.querySelector(`[data-node-id='${n.id}']`))")
    page.wait_for_timeout(300)  # nodes take their final size a few frames after they are shown
    return page.evaluate(BOXES, RENDERERS[renderer])


def overlapping(found: list[dict]) -> list[tuple[str, str]]:
    """The pairs of nodes that lie over each other."""
    return [(a["title"], b["title"]) for i, a in enumerate(found) for b in found[i + 1 :] if meet(a["box"], b["box"])]


def meet(a: list[float], b: list[float]) -> bool:
    return all(a[i] < b[i] + b[i + 2] and b[i] < a[i] + a[i + 2] for i in (0, 1))
