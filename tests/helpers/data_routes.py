"""The routes of the browser of pictures, asked over HTTP in a web server of their own: fixtures and requests."""

import asyncio
import base64
import importlib
import io
from pathlib import Path

import folder_paths
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from pictures import picture
from PIL import Image

DATA = "/flux2_train/data"


@pytest.fixture
def place(request):
    """A folder of three pictures inside ComfyUI's input folder."""
    name = f"curated{abs(hash(request.node.name)) % 10**8}"
    folder = Path(folder_paths.get_input_directory()) / name
    for number, size in enumerate(((64, 64), (128, 64), (64, 128))):
        picture(folder / f"{number}.png", size=size, caption=f"a [trigger] number {number}")
    return folder


@pytest.fixture(scope="module")
def routes(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.browser.data_changes").ROUTES


@pytest.fixture
def client(routes):
    """``client(work)``: what the coroutine ``work(client)`` returns."""

    def run(work):
        async def once():
            application = web.Application(client_max_size=1 << 26)
            for method, path, route in routes:
                application.router.add_route(method, path, route)
            async with TestClient(TestServer(application)) as opened:
                return await work(opened)

        return asyncio.run(once())

    return run


@pytest.fixture
def post(client):
    """``post(name, body)``: status and JSON of the answer."""

    def posted(name, body):
        async def work(opened):
            answer = await opened.post(f"{DATA}/{name}", json=body)
            return answer.status, await answer.json()

        return client(work)

    return posted


@pytest.fixture
def get(client):
    """``get(name, **query)``: status, headers and bytes of the answer."""

    def got(what, /, **query):
        async def work(opened):
            answer = await opened.get(f"{DATA}/{what}", params=query)
            return answer.status, answer.headers, await answer.read()

        return client(work)

    return got


def page(post, folder, start=0, count=100, **settings):
    status, found = post("pictures", {"settings": {"folder": folder.name, "resolution": 64, **settings},
                                      "start": start, "count": count})  # fmt: skip
    assert status == 200, found
    return found


def write(post, folder, *captions, **settings):
    return post("captions", {"settings": {"folder": folder.name, **settings}, "captions": list(captions)})


def painted(size, level=255) -> str:
    held = io.BytesIO()
    Image.new("RGB", size, (level,) * 3).save(held, "PNG")
    return base64.b64encode(held.getvalue()).decode()
