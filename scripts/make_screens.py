"""Photographs the quick start in a real browser: for README as it opens and after its run, for help pages its nodes.

``python scripts/make_screens.py`` (in the environment of scripts/test, with Chromium) starts a server, opens the quick
start, runs it on nano, and writes docs/ui/quick_start*.jpg and web/docs/ui/NODE.webp. The pictures of nodes
say nano, because their face does: it is the flavour that the quick start trains.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests" / "helpers")]

from comfy_server import ComfyServer  # noqa: E402
from workflow_templates import TEMPLATES  # noqa: E402

README = ROOT / "docs" / "ui"
HELP = ROOT / "web" / "docs" / "ui"
WIDTH = 1600  # of README's pictures
NODE_WIDTH, MOST_BYTES = 560, 60_000  # of a help page's picture
SECONDS = 1800
ENDED = """() => new Promise(done => {
    for (const event of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(event, () => done(event), { once: true })
    app.queuePrompt(0, 1)
})"""
SET = """values => {
    const trainer = app.graph._nodes.find(node => node.type === 'Flux2LoraTrainer')
    for (const [name, value] of Object.entries(values)) trainer.widgets.find(w => w.name === name).value = value
}"""
BOX = """id => {
    const { left, top, right, bottom } = document.querySelector(`[data-node-id='${id}']`).getBoundingClientRect()
    return { x: left - 8, y: top - 8, width: right - left + 16, height: bottom - top + 16 }
}"""
LOOK_AT = """id => {
    app.canvas.ds.scale = 1
    app.canvas.centerOnNode(app.graph.getNodeById(id))
    app.canvas.draw(true, true)
}"""


def photograph(page, target: Path) -> None:
    """The whole page, for README."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    picture.save(target, quality=72, optimize=True, progressive=True)
    print(target.relative_to(ROOT))


def photograph_node(page, number: int, target: Path) -> None:
    """One node alone, in as few bytes as a help page may take."""
    page.mouse.move(2, 2)  # a tooltip would come up
    page.evaluate(LOOK_AT, number)
    page.wait_for_timeout(600)  # frames in which its widgets find their places
    picture = Image.open(io.BytesIO(page.screenshot(clip=page.evaluate(BOX, number)))).convert("RGB")
    picture.thumbnail((NODE_WIDTH, 3 * NODE_WIDTH), Image.Resampling.LANCZOS)
    target.parent.mkdir(parents=True, exist_ok=True)
    for quality in range(85, 20, -10):
        picture.save(target, quality=quality, method=6)
        if target.stat().st_size < MOST_BYTES:
            break
    print(target.relative_to(ROOT), picture.size, target.stat().st_size)


def photograph_all(server) -> None:
    from frontend import frontend, open_template

    with frontend(server, 1760, 1100) as page:
        page.set_default_timeout(SECONDS * 1000)
        open_template(page, TEMPLATES[0].title)
        page.wait_for_timeout(2500)  # the view is set, and Load FLUX.2 says what it has found
        photograph(page, README / "quick_start.jpg")
        ended = page.evaluate(ENDED)
        if ended != "execution_success":
            raise SystemExit(f"the quick start ended with {ended}: {server.log_tail()}")
        page.evaluate("() => app.extensionManager.toast.removeAll?.()")
        page.wait_for_timeout(2500)
        photograph(page, README / "quick_start_run.jpg")
    photograph_nodes(server, {"steps": 16})


def photograph_nodes(server, trainer: dict) -> None:
    """The nodes after a short run: a help page shows what they look like. ``trainer`` sets values of LoRA Trainer."""
    from frontend import frontend, open_template, use_renderer

    with frontend(server, 1760, 2200) as page:  # so high that the longest node is seen as a whole
        page.set_default_timeout(SECONDS * 1000)
        use_renderer(page, "newer nodes")
        open_template(page, TEMPLATES[0].title)
        page.evaluate(SET, trainer)
        page.evaluate(ENDED)
        page.wait_for_timeout(2500)
        nodes = page.evaluate("() => app.graph._nodes.map(node => [node.id, node.type])")
        for number, kind in nodes:
            if kind.startswith("Flux2"):
                photograph_node(page, number, HELP / f"{kind}.webp")


def main() -> None:
    os.environ.setdefault("COMFYUI_PATH", str(ROOT / ".comfyui"))
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server:
        photograph_all(server)


if __name__ == "__main__":
    main()
