"""The routes of the tab FLUX.2 runs, asked over HTTP: what they answer, what they refuse, what they leave alone."""

import asyncio
import importlib
import io
import json
import random
import shutil
import urllib.parse

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from made_runs import make_run
from PIL import Image

from flux2_train.host.loading.files import run_folder
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.queue.place import own_queue

RUNS = "/flux2_train/runs"
HOSTILE = "img src=x onerror=alert(1)"


@pytest.fixture
def routes(pack):
    """Both tables of routes."""
    tables = (importlib.import_module(f"{pack.__name__}.nodes.browser.{name}").ROUTES for name in ("runs", "job_queue"))
    return [route for table in tables for route in table]


@pytest.fixture
def ask(routes):
    """``ask(path)`` and ``ask(path, body)``, or several of them in a list: status and bytes of each answer."""

    def asked(*requests):
        async def ask_all():
            application = web.Application()
            for method, path, route in routes:
                application.router.add_route(method, path, route)
            async with TestClient(TestServer(application)) as client:
                return [await ask_one(client, *each) for each in requests]

        return asyncio.run(ask_all())

    return asked


async def ask_one(client, path, body=None):
    if body is None:
        answer = await client.get(path)
    else:
        text = body if isinstance(body, bytes) else json.dumps(body)
        answer = await client.post(path, data=text, headers={"Content-Type": "application/json"})
    return answer.status, await answer.read()


@pytest.fixture
def runs(comfy_folders):
    """An empty folder of runs and an empty queue."""
    for folder in (run_folder(), own_queue().folder):
        shutil.rmtree(folder, ignore_errors=True)
    run_folder().mkdir()
    yield run_folder()
    shutil.rmtree(own_queue().folder, ignore_errors=True)
    shutil.rmtree(run_folder(), ignore_errors=True)


def test_runs_are_listed_in_pages_and_found_by_a_word(runs, ask):
    for number in range(5):
        make_run(runs, f"run {number}", rank=number + 1)
    answers = ask((f"{RUNS}?count=2",), (f"{RUNS}?offset=2&count=9",), (f"{RUNS}?word=RUN%203",), (RUNS,))
    pages = [json.loads(text) for _, text in answers]
    assert [len(page["runs"]) for page in pages] == [2, 3, 1, 5] and {page["total"] for page in pages} == {5}
    assert pages[2]["runs"][0]["settings"]["rank"] == 4 and pages[2]["found"] == 1 and pages[3]["size"] > 5000


def test_a_run_is_shown_with_its_pictures_log_curve_and_job(runs, ask):
    path = make_run(runs, "one")
    (path / "log.txt").write_text("begins\n")
    (path / "prompt.json").write_text('{"5": {"class_type": "Flux2LoraTrainer"}}')
    found, curve, graph, job, small = ask(
        (f"{RUNS}/details?run=one",), (f"{RUNS}/curve?run=one",), (f"{RUNS}/graph?run=one",), (f"{RUNS}/job?run=one",),
        (f"{RUNS}/picture?run=one&file=step_000100_1.png&size=96",),
    )  # fmt: skip
    details = json.loads(found[1])
    assert details["log"] == "begins\n" and details["checkpoints"] == [100] and details["state"] == "finished"
    assert [(p["step"], p["file"]) for p in details["pictures"]] == [
        (None, "base_1.png"), (0, "step_000000_1.png"), (100, "step_000100_1.png"),
    ]  # fmt: skip
    assert details["graph"] == {"workflow": False, "prompt": True} and json.loads(graph[1])["workflow"] == {}
    rows = json.loads(curve[1])["rows"]
    assert rows[0][0] == 1 and rows[-1][0] == 100
    assert job[1] == (path / "job.json").read_bytes()
    assert Image.open(io.BytesIO(small[1])).size == (96, 64)


def test_two_runs_are_compared_in_words(runs, ask):
    make_run(runs, "one", rank=16), make_run(runs, "other", rank=32)
    ((_, text),) = ask((f"{RUNS}/compare?one=one&other=other",))
    assert json.loads(text)["sentence"] == "rank 16 / 32"


def test_a_run_is_deleted_unless_it_is_trained(runs, ask):
    path = make_run(runs, "one")
    with RunFolder(path).held():
        ((status, text),) = ask((f"{RUNS}/delete", {"run": "one"}))
        assert status == 400 and b"being trained right now" in text and path.exists()
    assert ask((f"{RUNS}/delete", {"run": "one"})) == [(200, b"{}")] and not path.exists()


def test_variations_of_a_run_are_queued_moved_and_removed(runs, ask):
    make_run(runs, "one")
    add = {"run": "one", "vary": {"rank": ["8", "16"]}, "set": {"steps": "7"}}
    ((_, text),) = ask(("/flux2_train/queue/add", add))
    first, second = json.loads(text)["added"]
    assert [job["title"] for job in listed(ask)["jobs"]] == ["one, steps 7, rank 8", "one, steps 7, rank 16"]
    job = own_queue().entries()[0].values()["job"]
    assert (job["training"]["steps"], job["training"]["rank"], job["training"]["name"]) == (7, 8, "one rank 8")
    ask(("/flux2_train/queue/change", {"job": second, "do": "move", "place": 0}))
    assert listed(ask)["jobs"][0]["title"].endswith("rank 16")
    ask(("/flux2_train/queue/change", {"job": first, "do": "remove"}), ("/flux2_train/queue/pause", {"paused": True}))
    assert len(listed(ask)["jobs"]) == 1 and listed(ask)["paused"]


def listed(ask):
    return json.loads(ask(("/flux2_train/queue",))[0][1])


def test_a_run_goes_on_under_its_own_name(runs, ask):
    make_run(runs, "one")
    ask(("/flux2_train/queue/add", {"run": "one", "set": {"steps": "300"}}))
    (entry,) = own_queue().entries()
    assert entry.title == "one, steps 300" and entry.values()["job"]["training"]["name"] == "one"


def test_a_queued_job_never_says_where_files_go(runs, ask):
    path = make_run(runs, "one")
    values = json.loads((path / "job.json").read_text())
    (path / "job.json").write_text(json.dumps({**values, "output": {"loras": "/etc", "runs": "/tmp"}}))
    ask(("/flux2_train/queue/add", {"run": "one"}))
    assert own_queue().entries()[0].values()["job"]["output"] == {"loras": "", "runs": ""}
    for setting in ("output.loras", "output", "training", "name", "training.name", " output.runs", "version"):
        for more in ({"set": {setting: "/etc"}}, {"vary": {setting: ["/etc"]}}):
            ((status, _),) = ask(("/flux2_train/queue/add", {"run": "one", **more}))
            assert status == 400, (setting, more)
    assert len(own_queue().entries()) == 1


def test_links_out_of_a_run_are_not_followed(runs, ask, tmp_path):
    path = make_run(runs, "one")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "secret.txt").write_text("{}")
    for name, target in (("previews/step_000007_1.png", "secret.png"), ("job.json", "secret.txt")):
        (path / name).unlink(missing_ok=True)
        (path / name).symlink_to(tmp_path / target)
    answers = ask((f"{RUNS}/job?run=one",), (f"{RUNS}/picture?run=one&file=step_000007_1.png",))
    assert [status for status, _ in answers] == [400, 400]


def test_a_hostile_name_comes_back_as_plain_json(runs, ask):
    make_run(runs, HOSTILE)
    answers = ask((RUNS,), (f"{RUNS}/details?run={urllib.parse.quote(HOSTILE)}",))
    assert json.loads(answers[0][1])["runs"][0]["name"] == HOSTILE == json.loads(answers[1][1])["name"]


PARTS = [
    "..",
    ".",
    "/",
    "\\",
    "one",
    "~",
    "\0",
    "%2e%2e",
    "x" * 300,
    "C:",
    "é",
    "run.json",
    "NUL",
    "\u202e",
    "",
    " ",
    "*",
]
VALUES = [None, True, 0, -1, 10**30, 1.5, "", [], {}, [[]], {"a": 1}, "one", "../one", ["one"]]


def bad_names(draw, count):
    for _ in range(count):
        name = "".join(draw.choice(PARTS) for _ in range(draw.randint(1, 4)))
        if name != "one":
            yield name


def bad_bodies(draw, count):
    for _ in range(count):
        body = {draw.choice(["run", "step", "vary", "set", "job", "do", "place", "paused"]): draw.choice(VALUES)
                for _ in range(draw.randint(0, 3))}  # fmt: skip
        yield draw.choice([body, draw.randbytes(9), draw.choice(VALUES), {"run": draw.choice(PARTS), "do": "move"}])


def is_allowed(path, body):
    """What in fact asks for something: that run's job, or a pause."""
    if not isinstance(body, dict):
        return False
    named = body.get("run") == "one" and body.get("vary", {}) == {} and body.get("set", {}) == {}
    return (path.endswith("/add") and named) or (path.endswith("/delete") and body.get("run") == "one") or (
        path.endswith("/pause") and isinstance(body.get("paused"), bool))  # fmt: skip


@pytest.mark.long
def test_1000_bad_paths_and_bodies_change_nothing(runs, ask, routes, comfy_folders):
    make_run(runs, "one")
    draw, queries, bodies = random.Random(3), [], []
    gets = [path for method, path, _ in routes if method == "GET" and "/runs/" in path]
    posts = [path for method, path, _ in routes if method == "POST"]
    for name in bad_names(draw, 500):
        quoted = urllib.parse.quote(name)
        query = {"compare": f"one={quoted}&other=one", "picture": f"run=one&file={quoted}"}
        path = draw.choice(gets)
        queries.append((f"{path}?{query.get(path.rpartition('/')[2], f'run={quoted}')}",))
    for body in bad_bodies(draw, 700):
        path = draw.choice(posts)
        if not is_allowed(path, body):
            bodies.append((path, body if isinstance(body, bytes) else json.dumps(body).encode()))
    before = sorted(comfy_folders.rglob("*"))
    answers = ask(*queries, *bodies)
    assert len(answers) > 1000
    wrong = [each for each, (status, _) in zip([*queries, *bodies], answers, strict=True) if status != 400]
    assert not wrong
    assert all(set(json.loads(text)) == {"error"} and len(text) < 6000 for _, text in answers)
    assert sorted(comfy_folders.rglob("*")) == before


@pytest.mark.parametrize("query", ["offset=-1", "offset=x", "count=201", "count=1e3", "offset=" + "9" * 40, "count=²"])
def test_numbers_are_bounded(runs, ask, query):
    assert ask((f"{RUNS}?{query}",))[0][0] == 400


def test_the_tables_give_every_route_a_sentence(routes):
    assert len({path for _, path, _ in routes}) == len(routes) == 13
    assert all(route.__doc__.startswith(method) for method, _, route in routes)
