"""The route that ends a run, asked over HTTP in a web server of its own; test_server_runs asks ComfyUI's."""

import asyncio
import importlib
import re
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from flux2_train.host.loading.files import run_folder
from flux2_train.runs.folder import RunFolder


@pytest.fixture
def ask(pack):
    """``ask(body)``: status and text of the answer."""
    routes = importlib.import_module(f"{pack.__name__}.nodes.browser.routes")

    def asked(body, kind="application/json"):
        async def ask_once():
            application = web.Application()
            application.router.add_post("/stop", routes.stop)
            async with TestClient(TestServer(application)) as client:
                answer = await client.post("/stop", data=body, headers={"Content-Type": kind})
                return answer.status, await answer.text()

        return asyncio.run(ask_once())

    return asked


def test_a_run_that_is_trained_is_asked_to_end(ask):
    folder = RunFolder.create(run_folder(), "routed")
    assert ask('{"run": "routed"}')[0] == 400 and not folder.stop.exists()  # nobody trains it
    with folder.held():
        assert ask('{"run": "routed"}') == (200, "{}")
        assert folder.stop.exists()


@pytest.mark.parametrize("body, words", [
    ('{"run": "../routed"}', "is no run's name"), ('{"run": ".."}', "is no run's name"),
    ('{"run": ""}', "is no run's name"), ('{"run": 3}', "is no run's name"), ("[]", "The request is not"),
    ("{", "The request is not"), ("", "at most 4096 bytes"), ('{"run": "' + "a" * 5000 + '"}', "at most 4096 bytes"),
])  # fmt: skip
def test_what_is_no_runs_name_is_refused(ask, body, words):
    status, text = ask(body)
    assert status == 400 and words in text


def test_only_json_is_read(ask):
    assert ask('{"run": "routed"}', "text/plain")[0] == 400


def test_the_document_lists_every_route(pack):
    routes = importlib.import_module(f"{pack.__name__}.nodes.browser.routes").ROUTES
    document = (Path(__file__).parents[2] / "docs/routes.md").read_text()
    assert re.findall(r"^\| (\w+) `([^`]+)`", document, re.M) == [(method, path) for method, path, _ in routes]
