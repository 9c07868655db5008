"""The panel of a run on LoRA Trainer in a browser: found, waited for, pressed and looked at."""

from __future__ import annotations

import copy
import uuid
from pathlib import Path

from browsing import LOOK_AT, load, photograph, press_run, steady_box
from mistakes import DATA, GRAPH, LOAD, TRAINER

VALIDATION = "9"
STATE = """() => {
    const panel = document.querySelector('.flux2-run'), state = panel?.feed?.state
    if (!state) return null
    return { run: panel.panel.run, step: state.step, total: state.total, status: state.status, trains: state.trains,
             points: state.curves.loss.filter(v => v !== undefined).length, rate: state.rate,
             previews: [...state.previews.keys()], labels: state.pictures.map(each => each.label),
             checkpoints: [...state.checkpoints], warnings: state.warnings, notes: state.notes,
             validation: Object.keys(state.curves.validation).length, prompts: state.prompts, next: state.next,
             drawn: panel.querySelector('canvas')?.width ?? 0, away: panel.feed.away }
}"""
WAIT = "code => { const state = ({STATE})(); return state && new Function('s', `return ${code}`)(state) }"
LIGHT = "name => app.extensionManager.setting.set('Comfy.ColorPalette', name)"
# Whether all of the panel lies inside its node, which is drawn on the page or on the canvas.
FITS = """id => {
    const inner = document.querySelector('.flux2-run').getBoundingClientRect(), node = app.graph.getNodeById(Number(id))
    const vue = document.querySelector(`[data-node-id="${id}"]`)
    const { scale, offset } = app.canvas.ds, page = app.canvas.canvas.getBoundingClientRect()
    const outer = vue ? vue.getBoundingClientRect() : {
        left: page.left + (node.pos[0] + offset[0]) * scale, top: page.top + (node.pos[1] + offset[1] - 30) * scale,
        right: page.left + (node.pos[0] + node.size[0] + offset[0]) * scale,
        bottom: page.top + (node.pos[1] + node.size[1] + offset[1]) * scale }
    return inner.width > 100 && inner.left >= outer.left - 1 && inner.right <= outer.right + 1
        && inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1
}"""

# JavaScript that moves the canvas, so that an element of a node lies in the middle of the window.
TO_MIDDLE = """element => {
    const { x, y, width, height } = element.getBoundingClientRect(), { ds } = app.canvas
    ds.offset[0] += (innerWidth / 2 - x - width / 2) / ds.scale
    ds.offset[1] += (innerHeight / 2 - y - height / 2) / ds.scale
    app.canvas.setDirty(true, true)
}"""
# JavaScript that tells whether the element with the focus can be seen: nothing lies over its middle.
IN_SIGHT = """() => {
    const { x, y, width, height } = document.activeElement.getBoundingClientRect()
    return document.elementFromPoint(x + width / 2, y + height / 2) === document.activeElement
}"""


def graph(name: str, steps: int = 100_000, **trainer) -> tuple[dict, str]:
    """A training with previews of two prompts on three small pictures, and an id for its workflow."""
    prompt, workflow = copy.deepcopy(GRAPH), str(uuid.uuid4())
    prompt[VALIDATION] = {"class_type": "Flux2Validation", "inputs": {
        "vae": [LOAD, 2], "prompts": "zbot on red\na blue owl", "width": 64, "height": 64, "every": 100_000,
        "at_start": True, "seed": 42, "steps": 1}}  # fmt: skip
    prompt["3"]["inputs"]["validation"] = [VALIDATION, 0]
    prompt[TRAINER]["inputs"].update(
        {"name": name, "steps": steps, "options.option0": [VALIDATION, 0], "validation_items": 2, **trainer}
    )
    prompt[DATA]["inputs"]["prompt"] = workflow  # changes nothing, but else ComfyUI answers from its cache
    return prompt, workflow


def state(page) -> dict:
    """What the panel knows of its run."""
    return page.evaluate(STATE)


def until(page, condition: str) -> dict:
    """The panel's state, once the JavaScript ``condition`` on it (``s``) holds."""
    page.wait_for_function(WAIT.replace("{STATE}", STATE), arg=condition)
    return state(page)


def begin(page, prompt: dict, workflow: str) -> dict:
    """Put the graph on the canvas, press Run, and wait for its first steps."""
    load(page, prompt, workflow)
    press_run(page)
    return until(page, "s.trains && s.step > 2")


def press(page, text: str):
    """Press a button of the panel. This first moves the canvas, so that no bar of ComfyUI covers the button."""
    button = page.locator(".flux2-run").first.get_by_role("button", name=text, exact=True)
    button.evaluate(TO_MIDDLE)
    steady_box(button)
    button.click()


def tab_to(page, name: str) -> None:
    """Press Tab until the button of that name has the focus."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.textContent") == name:
            return
    raise AssertionError(f"the key Tab does not reach {name}")


def look(page, folder: Path, name: str, scale: float = 0.8) -> None:
    """A picture of the node with its panel."""
    page.evaluate(LOOK_AT, [TRAINER, scale])
    page.wait_for_timeout(500)
    photograph(page, folder, name)
