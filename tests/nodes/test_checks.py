"""What is wrong with a graph is said before it runs, on the input that it is about."""

import asyncio
import copy
import importlib
import json
from pathlib import Path

import folder_paths
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from mistakes import DATA, GRAPH, MISTAKES, TRAINER, write_files

BEFORE = [each for each in MISTAKES if each.input]


@pytest.fixture(scope="module")
def browser(pack, comfy_folders):
    """``browser("checks")``: a module of the pack, with the files of the mistakes in place."""
    write_files(comfy_folders)
    for kind in ("diffusion_models", "text_encoders", "vae"):
        folder = comfy_folders / kind
        for file in (comfy_folders / "models" / kind).iterdir():
            file.rename(folder / file.name)
        folder_paths.filename_list_cache.pop(kind, None)
    return lambda name: importlib.import_module(f"{pack.__name__}.nodes.browser.{name}")


def sinks(graph):
    return [id for id, node in graph.items() if node["class_type"] in ("Flux2LoraTrainer", "Flux2SaveMergedModel",
                                                                        "PreviewImage")]  # fmt: skip


@pytest.mark.parametrize("mistake", BEFORE, ids=lambda each: each.name)
def test_a_mistake_is_said_on_its_input(browser, mistake):
    graph = mistake.graph()
    found = browser("checks").problems(graph, sinks(graph))
    assert mistake.input in [name for name, _ in found[mistake.node]]
    assert any(mistake.says in sentence for name, sentence in found[mistake.node] if name == mistake.input)


def test_a_good_graph_and_what_is_not_needed_are_left_alone(browser):
    problems, graph = browser("checks").problems, copy.deepcopy(GRAPH)
    assert problems(graph, [TRAINER]) == {}
    graph["9"] = {"class_type": "Flux2DatasetFolder", "inputs": {"folder": ""}}
    assert problems(graph, [TRAINER]) == {}  # nothing that runs needs it
    graph[DATA]["inputs"]["folder"] = ["9", 0]  # comes over a wire: not known yet
    graph["9"] = {"class_type": "PrimitiveString", "inputs": {"value": ""}}
    assert problems(graph, [TRAINER]) == {}


def test_preservation_looks_at_every_data_set_and_at_its_kind(browser):
    problems, graph = browser("checks").problems, copy.deepcopy(GRAPH)
    graph[TRAINER]["inputs"]["preservation"] = 1.0
    assert problems(graph, [TRAINER]) == {}
    graph[DATA]["inputs"]["more"] = ["9", 0]
    graph["9"] = {"class_type": "Flux2DatasetFolder", "inputs": {**GRAPH[DATA]["inputs"], "trigger": ""}}
    assert "(node 9) has no trigger word" in problems(graph, [TRAINER])[TRAINER][0][1]
    graph["p"] = {"class_type": "Flux2Preservation", "inputs": {"kind": "blank", "every": 1, "together": False}}
    graph[TRAINER]["inputs"]["preserve"] = ["p", 0]
    assert problems(graph, [TRAINER]) == {}


def ask(refusals, body):
    """Status and JSON of a POST to /prompt of a server that queues whatever reaches it."""

    async def queue(request):
        return web.json_response({"queued": (await request.json())["prompt"]})

    async def ask_once():
        application = web.Application(middlewares=[refusals.check_first])
        application.router.add_post("/prompt", queue)
        async with TestClient(TestServer(application)) as client:
            answer = await client.post("/prompt", data=body)
            return answer.status, await answer.json()

    return asyncio.run(ask_once())


def test_a_graph_with_a_mistake_is_refused_as_comfyui_refuses_one(browser, monkeypatch):
    refusals = browser("refusals")
    monkeypatch.setattr(refusals, "_is_output", lambda entry: entry["class_type"] == "Flux2LoraTrainer")
    good = {"prompt": GRAPH, "client_id": "x"}
    assert ask(refusals, json.dumps(good)) == (200, {"queued": GRAPH})
    bad = next(each for each in MISTAKES if each.name == "a name with a slash").graph()
    status, answer = ask(refusals, json.dumps({"prompt": bad}))
    assert status == 400 and "cannot be a file name" in answer["error"]["message"]
    (error,) = answer["node_errors"][TRAINER]["errors"]
    assert (
        error["extra_info"] == {"input_name": "name", "flux2_train": True}
        and answer["node_errors"][TRAINER]["class_type"]
    )
    other = {"prompt": bad, "partial_execution_targets": [DATA]}
    assert ask(refusals, json.dumps(other))[0] == 200  # that node alone is queued


@pytest.mark.parametrize("prompt", ["3", "{}", '{"1": 5}', '{"1": {"inputs": 4}}'])
def test_what_cannot_be_read_is_left_to_comfyui(browser, prompt):
    assert ask(browser("refusals"), f'{{"prompt": {prompt}}}')[0] == 200


def test_the_page_of_mistakes_lists_them_all():
    page = (Path(__file__).resolve().parents[2] / "docs" / "mistakes.md").read_text()
    assert len(MISTAKES) >= 20
    assert not [each.name for each in MISTAKES if f"| {each.name} |" not in page or each.says not in page]
