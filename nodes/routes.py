"""The route with which the browser ends a run early. ComfyUI's check of the request's origin protects it too."""

from __future__ import annotations

from aiohttp import web
from server import PromptServer

from ..flux2_train.bounded import from_json
from ..flux2_train.errors import UserError
from ..flux2_train.host.loading import files
from ..flux2_train.names import problem, shown
from ..flux2_train.runs.folder import RunFolder

MOST_BYTES = 4096
LONGEST_NAME = 255  # bytes: a run whose name was taken has a number behind it


def add_routes() -> None:
    """Add the route to the server, if there is one."""
    if getattr(PromptServer, "instance", None) is not None:
        PromptServer.instance.routes.post("/flux2_train/stop")(stop)


async def stop(request: web.Request) -> web.Response:
    """POST {"run": NAME}: end that run after the step in progress and keep its LoRA."""
    try:
        RunFolder(files.run_folder() / await _run(request)).ask_to_stop()
    except UserError as error:
        return web.json_response({"error": str(error)}, status=400)
    return web.json_response({})


async def _run(request: web.Request) -> str:
    if request.content_type != "application/json" or not 0 < (request.content_length or 0) <= MOST_BYTES:
        raise UserError(f'Send {{"run": NAME}} as application/json, at most {MOST_BYTES} bytes.')
    try:
        name = from_json((await request.read()).decode())["run"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError('The request is not {"run": NAME}.') from error
    if not isinstance(name, str) or problem(name, LONGEST_NAME):
        raise UserError(f"{shown(str(name))!r} is no run's name.")
    return name
