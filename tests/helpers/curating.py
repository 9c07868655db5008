"""The browser of pictures in a real frontend, for tests: a folder, its dialog, a run's verdicts."""

import json
import time
import uuid

import pytest
from browsing import LOOK_AT, load, open_tab
from pictures import gradient, picture

from flux2_train.evaluate.verdicts import Judged
from flux2_train.events import ImageLoss
from flux2_train.runs.writers.image_files import _write_judged

EVIL = "<img src=x onerror=window.flux2Evil=1>.png"
SIDECAR = "flux2_dataset.json"
DATA = {"1": {"class_type": "Flux2DatasetFolder", "inputs": {"folder": "", "resolution": 128, "trigger": "vorn",
                                                            "class_word": "creature"}}}  # fmt: skip
DROP = """async ([id, files]) => {
    const node = app.graph.getNodeById(id), transfer = new DataTransfer()
    for (const [name, data, type] of files) {
        const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0))
        transfer.items.add(new File([bytes], name, { type }))
    }
    const event = new DragEvent('drop', { dataTransfer: transfer, bubbles: true })
    return node.onDragDrop(event)
}"""
# Scrolls the grid in every frame; the lengths of the frames in ms, the shortest first.
SCROLL = """() => new Promise(resolve => {
    const grid = document.querySelector('.flux2-data .grid'), times = []
    let last = performance.now(), number = 0
    grid.scrollTop = 0
    const step = now => {
        times.push(now - last); last = now
        grid.scrollTop += 400
        if (++number < 120) requestAnimationFrame(step); else resolve(times.slice(2).sort((a, b) => a - b))
    }
    requestAnimationFrame(step)
})"""
SLOW = pytest.mark.slow


@pytest.fixture(scope="module", params=[
    "pinned", *(pytest.param(name, marks=SLOW) for name in ("pinned, vue", "newest", "newest, vue")),
])  # fmt: skip
def tab(request, chromium):
    """(page, server, name) of a frontend in one of its renderers."""
    name = request.param
    server = request.getfixturevalue("newest_server" if "newest" in name else "server")
    context = chromium.new_context(viewport={"width": 1500, "height": 900}, locale="en-US")
    page = open_tab(context, server, "vue" in name)
    page.set_default_timeout(30_000)
    yield page, server, name.replace(", ", "_")
    context.close()
    server.post("/settings", {"Comfy.VueNodes.Enabled": False, "Comfy.ColorPalette": "dark"})


@pytest.fixture
def folder(tab):
    """Twelve pictures of the server's input folder, one without a caption, one with a name that is HTML."""
    _, server, _ = tab
    path = server.folder / "input" / f"character{uuid.uuid4().hex[:6]}"
    for number in range(11):
        size = (160 + 16 * (number % 3), 128 + 16 * (number % 4))
        picture(path / f"{number:02}.png", caption=f"[trigger] figure number {number}, on a beach")
        gradient(size, number / 11).save(path / f"{number:02}.png")
    (path / "03.txt").unlink()
    picture(path / EVIL, size=(128, 128), caption="<img src=x onerror=window.flux2Evil=1>")
    return path


def judge(server, folder, **verdicts):
    """A run whose newest measurement gave these verdicts: ``_01="mislabelled"`` is about 01.png."""
    run = server.folder / "output" / "flux2_train" / f"run of {folder.name}"
    run.mkdir(parents=True)
    judged = []
    for number in range(11):
        loss = ImageLoss(folder / f"{number:02}.png", False, (1.0,) * 4, (("07.png", 0.2), ("08.png", 0.4)))
        verdict = verdicts.get(f"_{number:02}", "")
        judged.append(Judged(loss, 1, 1, 1, 0, 0, 0, verdict, f"because {number}" if verdict else ""))
    _write_judged(run / "images.csv", judged)


@pytest.fixture
def dialog(tab, folder):
    """``dialog()`` opens the pictures of the folder, as a person does."""
    page, _, _ = tab

    def opened():
        prompt = json.loads(json.dumps(DATA))
        prompt["1"]["inputs"]["folder"] = folder.name
        load(page, prompt)
        page.evaluate(LOOK_AT, ["1", 1])
        page.wait_for_timeout(400)
        page.get_by_role("button", name="Open pictures").click()
        shown = page.locator("dialog.flux2-data")
        page.wait_for_function("() => document.querySelectorAll('.flux2-data .card img[src]').length > 3")
        return shown

    yield opened
    page.evaluate("() => document.querySelectorAll('dialog').forEach(each => each.remove())")


def card(shown, name):
    return shown.locator(".card").filter(has=shown.page.locator("small", has_text=name))


def until(holds, seconds=10):
    """Wait until ``holds()`` is true."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
