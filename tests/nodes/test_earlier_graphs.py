"""Workflows and prompts of earlier versions in the browser: what was wired into LoRA Trainer still is."""

import json

import pytest
from frontend import FRONTENDS, WORKFLOWS, frontend, open_graph, queued, server_of, shipped, use_renderer
from workflow_files import NOTE
from workflow_templates import TEMPLATES

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.long]
# by slug: what the wired sockets 'options.option0' and so on were called
WIRED = {
    "flux2_lora_nano": ("validation",), "flux2_lora_character": ("validation", "preserve"),
    "flux2_lora_continue": ("validation", "adapter"),
}  # fmt: skip
FREE = {"FLUX2_OBJECTIVE": "objective", "FLUX2_MEMORY": "memory"}
INPUTS = "() => app.graph._nodes.find(n => n.type === 'Flux2LoraTrainer').inputs.map(i => [i.name, i.label, i.type])"


@pytest.fixture(scope="module", params=FRONTENDS)
def page(request):
    with frontend(server_of(request)) as opened:
        yield opened


def earlier_graph(slug: str) -> dict:
    """A shipped template as an earlier version would have saved it, with two sockets that are free."""
    (title,) = (template.title for template in TEMPLATES if template.slug == slug)
    graph = json.loads((WORKFLOWS / f"{title}.json").read_text())
    for node in graph["nodes"]:
        if node["type"] == "Flux2LoraTrainer":
            kept = [socket for socket in node["inputs"] if not socket["name"].startswith("options.")]
            options = [socket for socket in node["inputs"] if socket["name"].startswith("options.")]
            for name, socket in zip(WIRED[slug], options, strict=True):
                socket.update(name=name, type=f"FLUX2_{name.upper()}")
                del socket["label"]
            free = [{"name": name, "type": kind, "link": None} for kind, name in FREE.items()]
            node["inputs"] = [*kept, free[0], *options, free[1]]
    return graph


def earlier_prompt(slug: str) -> dict:
    prompt = shipped(slug)
    (trainer,) = (node["inputs"] for node in prompt.values() if node["class_type"] == "Flux2LoraTrainer")
    for number, name in enumerate(WIRED[slug]):
        trainer[name] = trainer.pop(f"options.option{number}")
    return prompt


@pytest.mark.drawn
@pytest.mark.parametrize("renderer, slug", [
    *(("canvas", slug) for slug in WIRED), ("newer nodes", "flux2_lora_character"),
])  # fmt: skip
def test_an_earlier_workflow_opens_with_its_option_nodes_wired(page, renderer, slug):
    use_renderer(page, renderer)
    open_graph(page, earlier_graph(slug))
    assert queued(page) == shipped(slug)
    names = [name for name, _, kind in page.evaluate(INPUTS) if kind.startswith("FLUX2_OPTIONS")]
    assert names == [f"options.option{number}" for number in range(len(WIRED[slug]) + 1)]  # and a free one
    again = page.evaluate("() => app.graph.serialize()")
    assert len([node for node in again["nodes"] if node["type"] != NOTE]) == len(shipped(slug))
    page.evaluate("() => app.loadGraphData(app.graph.serialize())")
    assert queued(page) == shipped(slug)
    use_renderer(page, "canvas")


def parted(prompt: dict) -> tuple[list, dict]:
    """(what is wired into the trainer's options, its other inputs)"""
    (inputs,) = (node["inputs"] for node in prompt.values() if node["class_type"] == "Flux2LoraTrainer")
    options = [value for name, value in inputs.items() if name.startswith("options.")]
    return options, {name: value for name, value in inputs.items() if not name.startswith("options.")}


@pytest.mark.drawn(cases=1)
@pytest.mark.parametrize("slug", WIRED)
def test_an_earlier_prompt_opens_with_its_option_nodes_wired(page, slug):
    for prompt in (earlier_prompt(slug), shipped(slug)):
        page.evaluate("prompt => app.loadApiJson(prompt, 'earlier')", prompt)
        page.wait_for_function("n => app.graph._nodes.length === n", arg=len(prompt))
        page.wait_for_timeout(300)
        (options, others), (expected, same) = map(parted, (queued(page), shipped(slug)))
        assert sorted(options) == sorted(expected) != [] and others == same


def test_sockets_are_called_after_what_is_wired_into_them(page):
    open_graph(page, earlier_graph("flux2_lora_character"))
    page.wait_for_timeout(300)
    labels = [label for name, label, _ in page.evaluate(INPUTS) if name.startswith("options.")]
    assert labels == ["validation", "preservation", "options"]
    page.evaluate("() => app.graph._nodes.find(n => n.type === 'Flux2LoraTrainer').disconnectInput(3)")
    page.wait_for_timeout(500)
    labels = [label for name, label, _ in page.evaluate(INPUTS) if name.startswith("options.")]
    assert labels == ["preservation", "options"]
