"""The shipped workflows fit the nodes: made anew from the running server's node list they are the same files."""

import itertools
import json
from pathlib import Path

import pytest
from make_workflows import render
from workflow_files import NOTE, WIDGET_TYPES, inputs_of
from workflow_templates import TEMPLATES

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
    for node in (node for node in graph["nodes"] if node["type"] != NOTE):
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
        title = node.get("title", info[node["type"]]["display_name"])
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


def opened(template) -> dict:
    return json.loads((ROOT / f"{template.title}.json").read_text())


def test_every_file_is_one_of_the_ten_templates_and_has_a_picture_of_its_own():
    titles, slugs = ({getattr(each, name) for each in TEMPLATES} for name in ("title", "slug"))
    assert len(titles) == len(slugs) == len(TEMPLATES) == 10
    assert {path.stem for path in ROOT.glob("*.json")} == {path.stem for path in ROOT.glob("*.jpg")} == titles
    assert {path.stem for path in (ROOT / "api").glob("*.json")} == slugs
    pictures = {path.read_bytes() for path in ROOT.glob("*.jpg")}
    assert len(pictures) == 10 and max(map(len, pictures)) < 60_000


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda each: each.slug)
def test_what_a_person_opens_is_what_a_script_queues(template, info):
    graph = opened(template)
    assert converted(graph, info) == json.loads((ROOT / "api" / f"{template.slug}.json").read_text())
    for link in graph["links"]:
        source, target = (next(n for n in graph["nodes"] if n["id"] == i) for i in (link[1], link[3]))
        assert link[0] in source["outputs"][link[2]]["links"] and target["inputs"][link[4]]["link"] == link[0]
        assert source["outputs"][link[2]]["type"] == link[5]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda each: each.slug)
def test_missing_model_dialog_gets_its_downloads(template):
    for node in (node for node in opened(template)["nodes"] if node["type"] == "Flux2Load"):
        if template.slug == "flux2_lora_nano":
            assert "models" not in node["properties"]
            continue
        models = node["properties"]["models"]
        assert [m["directory"] for m in models] == ["diffusion_models", "text_encoders", "vae"]
        assert all(m["url"].startswith("https://huggingface.co/") and m["url"].endswith(m["name"]) for m in models)
        assert {m["name"] for m in models} <= set(node["widgets_values"])


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda each: each.slug)
def test_groups_stand_from_left_to_right_with_one_note_each(template):
    graph = opened(template)
    boxes = [group["bounding"] for group in graph["groups"]]
    titles = [group["title"] for group in graph["groups"]]
    assert [title[:3] for title in titles] == [f"{number} ·" for number in range(1, len(titles) + 1)]
    assert all(a[0] + a[2] <= b[0] for a, b in itertools.pairwise(boxes))
    inside = [[node for node in graph["nodes"] if box[0] <= node["pos"][0] < box[0] + box[2]] for box in boxes]
    assert sum(map(len, inside)) == len(graph["nodes"])
    for nodes in inside:
        notes = [node for node in nodes if node["type"] == NOTE]
        assert len(notes) == 1 < len(nodes) and notes[0]["pos"][1] == min(node["pos"][1] for node in nodes)


def test_the_quick_start_has_at_most_seven_nodes():
    assert len([node for node in opened(TEMPLATES[0])["nodes"] if node["type"] != NOTE]) <= 7
