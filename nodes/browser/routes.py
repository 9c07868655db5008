"""Routes for the browser: end a run early, and what nodes show. ComfyUI's check of a request's origin protects them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

from ...flux2_train.errors import UserError
from ...flux2_train.host.loading import files
from ...flux2_train.runs.files_there import lines
from ...flux2_train.runs.folder import RunFolder
from ...flux2_train.settings.model import ModelSettings
from . import data_changes, job_queue, live, runs
from .refusals import check_first
from .requests import body, in_words, run_name
from .server import prompt_server
from .shown import BOARD

MOST_NAME = 300
ASKED = ("flavour", "precision", "variant", "transformer", "text_encoder", "vae")  # widgets of Load FLUX.2
ONE_AT_A_TIME = asyncio.Lock()


def add_routes() -> None:
    """Add the routes to the server, if there is one."""
    server = prompt_server()
    if server is not None:
        for method, path, route in ROUTES:
            server.routes.route(method, path)(route)
        server.app.middlewares.append(check_first)


async def shown(request: web.Request) -> web.Response:
    """GET ?workflow=ID: what the nodes of that workflow have shown since the server's start, by their id."""
    return web.json_response({"nodes": BOARD.of(request.query.get("workflow", ""))})


async def files_there(request: web.Request) -> web.Response:
    """GET ?flavour=NAME&precision=NAME...: which files are there, and what this machine's memory allows, in lines.

    File names are those that ComfyUI lists; a path is refused. One question is answered at a time.
    """
    asked = {name: str(request.query[name])[:MOST_NAME] for name in ASKED if name in request.query}
    try:
        if any(Path(asked.get(name, "")).is_absolute() for name in ASKED):
            raise UserError("Name a file that ComfyUI lists.")
        settings = ModelSettings(**asked)
        async with ONE_AT_A_TIME:
            found = await asyncio.to_thread(lambda: list(lines(settings)))
    except UserError as error:
        found = [f"bad: {error}"]
    return web.json_response({"lines": found})


@in_words
async def stop(request: web.Request) -> web.Response:
    """POST {"run": NAME}: end that run after the step in progress and keep its LoRA."""
    name = run_name((await body(request, '{"run": NAME}')).get("run"))
    RunFolder(files.run_folder() / name).ask_to_stop()
    return web.json_response({})


# method, path, what answers; docs/routes.md has the same table in words
ROUTES = (
    ("GET", "/flux2_train/shown", shown),
    ("GET", "/flux2_train/files", files_there),
    ("POST", "/flux2_train/stop", stop),
    *runs.ROUTES,
    *job_queue.ROUTES,
    *live.ROUTES,
    *data_changes.ROUTES,
)
