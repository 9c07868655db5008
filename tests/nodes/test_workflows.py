"""The shipped workflows fit the nodes: made anew from the running server's node list they are the same files."""

import json
from pathlib import Path

import pytest
from make_workflows import WIDGET_TYPES, inputs_of, render

ROOT = Path(__file__).resolve().parents[2] / "workflows"
pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def info(server):
    return server.get("/object_info")


def test_committed_workflows_are_up_to_date(info):
    """LoRA Apply's list of files depends on what is there, its value does not."""
    for path, text in render(info).items():
        assert (ROOT / path).read_text() == text, f"run scripts/make_workflows.py: {path} is not what it makes"


def converted(graph, info):
    """UI JSON to API JSON as the frontend does it: widgets in order, links by slot."""
    links = {link[0]: link for link in graph["links"]}
    prompt = {}
    for node in graph["nodes"]:
        values, inputs = iter(node["widgets_values"]), {}
        for name, kind, options in inputs_of(info[node["type"]]):
            if kind in WIDGET_TYPES:
                inputs[name] = next(values)
                if options.get("control_after_generate"):
                    assert next(values) == "fixed"
        assert next(values, None) is None
        for slot in node["inputs"]:
            if slot["link"] is not None:
                inputs[slot["name"]] = [str(links[slot["link"]][1]), links[slot["link"]][2]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node["title"]}}
    return prompt


@pytest.mark.parametrize("name", sorted(p.stem for p in ROOT.glob("*.json")))
def test_what_a_person_opens_is_what_a_script_queues(name, info):
    graph = json.loads((ROOT / f"{name}.json").read_text())
    assert converted(graph, info) == json.loads((ROOT / "api" / f"{name}.json").read_text())
    for link in graph["links"]:
        source, target = (next(n for n in graph["nodes"] if n["id"] == i) for i in (link[1], link[3]))
        assert link[0] in source["outputs"][link[2]]["links"] and target["inputs"][link[4]]["link"] == link[0]
        assert source["outputs"][link[2]]["type"] == link[5]


@pytest.mark.parametrize("name", ["klein-9b", "klein-4b", "dev"])
def test_missing_model_dialog_gets_its_downloads(name):
    graph = json.loads((ROOT / f"flux2_lora_{name}.json").read_text())
    models = next(n for n in graph["nodes"] if n["type"] == "Flux2Load")["properties"]["models"]
    assert [m["directory"] for m in models] == ["diffusion_models", "text_encoders", "vae"]
    assert all(m["url"].startswith("https://huggingface.co/") and m["url"].endswith(m["name"]) for m in models)
