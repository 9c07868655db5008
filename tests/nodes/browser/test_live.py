"""The routes of the panel, asked over HTTP in a web server of its own: a run from its folder, and requests to it."""

import asyncio
import importlib
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from flux2_train.host.loading.files import run_folder
from flux2_train.runs.folder import RunFolder

LINES = [{"kind": "began", "at": 1, "total": 9}, {"kind": "steps", "first": 1, "total": 9, "loss": [0.5]},
         {"kind": "steps", "first": 2, "total": 9, "loss": [0.25, 0.125]}]  # fmt: skip
JOB = {"training": {"learning_rate": 1e-3, "checkpoints": {"keep": 2}}, "previews": {"prompts": [{"text": "a <b>"}]}}


@pytest.fixture
def ask(pack):
    """``ask(method, path, body)``: status and JSON of the answer."""
    live = importlib.import_module(f"{pack.__name__}.nodes.browser.live")

    def asked(method, path, body=None, kind="application/json"):
        async def ask_once():
            application = web.Application()
            for verb, place, route in live.ROUTES:
                application.router.add_route(verb, place, route)
            async with TestClient(TestServer(application)) as client:
                headers = {"Content-Type": kind} if body is not None else {}
                answer = await client.request(method, f"/flux2_train/{path}", data=body, headers=headers)
                return answer.status, await answer.json()

        return asyncio.run(ask_once())

    return asked


@pytest.fixture
def folder(request):
    """The folder of a run that a node of a workflow began."""
    made = RunFolder.create(run_folder(), f"live_{request.node.name[:20]}")
    made.note(name=made.name, status="running", step=3, total=9, graph={"workflow": "w", "node": made.name}, shown="1")
    made.job.write_text(json.dumps(JOB))
    made.record.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return made


def test_a_run_is_found_by_its_name_and_by_its_node(ask, folder):
    status, found = ask("GET", f"run?run={folder.name}")
    assert status == 200 and (found["run"], found["step"], found["total"], found["next"]) == (folder.name, 3, 9, 3)
    assert found["lines"][0] == LINES[0] and found["lines"][1]["step"] == [1, 2, 3]
    assert found["learning_rate"] == 1e-3 and found["prompts"] == ["a <b>"] and found["keeps"] == 2
    assert found["status"] == "killed" and not found["trains"]  # nobody holds it
    assert ask("GET", f"run?workflow=w&node={folder.name}") == (status, found)
    with folder.held():
        trained = ask("GET", f"run?run={folder.name}")[1]
    assert trained["status"] == "running" and trained["trains"]


def test_only_what_is_new_is_sent(ask, folder):
    found = ask("GET", f"run?run={folder.name}&after=2")[1]
    assert found["lines"] == [{**LINES[2], "step": [2, 3], "smoothed": [0, 0], "preservation": [0, 0],
                               "seconds": [0, 0]}]  # fmt: skip
    assert ask("GET", f"run?run={folder.name}&after=3")[1]["lines"] == []
    for odd in ("-1", "x", "9" * 40, "1.5", ""):
        assert len(ask("GET", f"run?run={folder.name}&after={odd}")[1]["lines"]) == 2


def test_the_newest_run_of_a_node_counts(ask, folder):
    other = RunFolder.create(run_folder(), f"{folder.name}_later")
    other.note(graph={"workflow": "w", "node": folder.name}, shown="2")
    other.job.write_text(json.dumps(JOB))
    assert ask("GET", f"run?workflow=w&node={folder.name}")[1]["run"] == other.name


@pytest.mark.parametrize("query", ["run=nothing", "workflow=w&node=99", "workflow=&node=", "", "node=5"])
def test_there_may_be_no_run(ask, query):
    assert ask("GET", f"run?{query}") == (200, {})


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "%00", "", "a" * 300])
def test_what_is_no_runs_name_is_refused(ask, name):
    assert ask("GET", f"run?run={name}")[0] == 400
    assert ask("POST", "steer", json.dumps({"run": name, "ask": "stop"}))[0] == 400


@pytest.mark.parametrize("text", ["", "{", "[]", '{"training": 3}', '{"training": {}, "previews": {"prompts": [3]}}'])
def test_a_damaged_job_takes_nothing_else_away(ask, folder, text):
    folder.job.write_text(text)
    assert ask("GET", f"run?run={folder.name}")[1]["next"] == 3


def test_a_request_reaches_a_run_that_is_trained(ask, folder):
    change = {"learning_rate": 5e-4, "prompts": ["<img src=x onerror=alert(1)>"]}
    body = json.dumps({"run": folder.name, "ask": "change", "change": change})
    status, answer = ask("POST", "steer", body)
    assert status == 400 and "is being trained" in answer["error"]
    with folder.held():
        assert ask("POST", "steer", body) == (200, {})
        assert ask("POST", "steer", json.dumps({"run": folder.name, "ask": "stop"})) == (200, {})
        (asked,) = folder.asked.iterdir()
        assert json.loads(asked.read_text())["change"] == {"after": 0, "steps": None, **change}
        assert folder.stop.exists()


@pytest.mark.parametrize("body, words", [
    ({"ask": "sing"}, "ask is 'sing'; choose one of"), ({"ask": "change"}, "at least one of"), ({}, "ask is missing"),
    ({"ask": "change", "change": {"learning_rate": "fast"}}, "must be a number"),
    ({"ask": "change", "change": {"learning_rate": 5}}, "lie between 0 and 1"),
    ({"ask": "change", "change": {"prompts": ["a"] * 65}}, "There are 65 prompts"),
    ({"ask": "save", "change": {"steps": 3}}, "nothing else takes them"), ({"ask": "stop", "path": "/"}, "no setting"),
], ids=lambda value: str(value)[:30])  # fmt: skip
def test_what_makes_no_sense_is_refused_in_words(ask, folder, body, words):
    with folder.held():
        status, answer = ask("POST", "steer", json.dumps({"run": folder.name, **body}))
        assert status == 400 and words in answer["error"] and not folder.asked.exists()


@pytest.mark.parametrize("body, kind", [
    ('{"run": "x", "ask": "stop"}', "text/plain"), ("{", "application/json"), ("[]", "application/json"),
    ('{"run": "' + "a" * (1 << 20) + '"}', "application/json"),
], ids=["a form's type", "no JSON", "a list", "too long"])  # fmt: skip
def test_only_small_json_objects_are_read(ask, body, kind):
    assert ask("POST", "steer", body, kind)[0] == 400
