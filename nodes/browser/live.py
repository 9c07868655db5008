"""Routes of the panel on LoRA Trainer: a run as it is, from its folder, and what is asked of it."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ...flux2_train.bounded import from_json, read_text
from ...flux2_train.events import Recorded
from ...flux2_train.host.loading import files
from ...flux2_train.runs.folder import RUNNING, RunFolder
from ...flux2_train.runs.library.listing import KILLED
from ...flux2_train.runs.live import record
from ...flux2_train.runs.live.asking import ask
from ...flux2_train.settings.base import read
from ...flux2_train.settings.job import MAX_BYTES
from ...flux2_train.settings.steering import Request
from .requests import body, in_words, run_name
from .server import prompt_server
from .shown import running_workflow

EVENT = "flux2_train.run"
MOST_BYTES = 1 << 20  # of a request with prompts
ABOUT = ("status", "step", "total", "began", "ended", "why", "lora", "resumed")
EXAMPLE = '{"run": NAME, "ask": "stop", "pause", "save", "preview" or "change", "change": {...}}'


@in_words
async def run(request: web.Request) -> web.Response:
    """GET ?run=NAME or ?workflow=ID&node=ID, &after=N: the run, with the lines of its record behind the first N."""
    asked = request.query
    after = int(asked["after"]) if asked.get("after", "").isdecimal() and len(asked["after"]) < 12 else 0
    if "run" in asked:
        folder = RunFolder(files.run_folder() / run_name(asked["run"]))
    else:
        folder = await asyncio.to_thread(newest_of, asked.get("workflow", ""), asked.get("node", ""))
    if folder is None or not folder.job.is_file():
        return web.json_response({})
    return web.json_response(await asyncio.to_thread(state_of, folder, after))


@in_words
async def steer(request: web.Request) -> web.Response:
    """POST {"run": NAME, "ask": WHAT, "change": VALUES}: ask that of a run that is being trained."""
    asked = await body(request, EXAMPLE, MOST_BYTES)
    folder = RunFolder(files.run_folder() / run_name(asked.pop("run", None)))
    await asyncio.to_thread(lambda: ask(folder, read(Request, asked)))
    return web.json_response({})


ROUTES = (("GET", "/flux2_train/run", run), ("POST", "/flux2_train/steer", steer))


def newest_of(workflow: str, node: str) -> RunFolder | None:
    """The run that a node of a workflow began last."""
    runs = files.run_folder()
    if not workflow or not node or not runs.is_dir():
        return None
    found = []
    for path in runs.iterdir():
        about = RunFolder(path).about()
        if about.get("graph") == {"workflow": workflow, "node": node}:
            found.append((str(about.get("shown", "")), path))
    return RunFolder(max(found)[1]) if found else None


def state_of(folder: RunFolder, after: int = 0) -> dict:
    """Everything that the panel shows of a run."""
    lines, count = record.read(folder, after)
    about, held = folder.about(), folder.is_held()
    state = {name: about[name] for name in ABOUT if name in about}
    if about.get("status") == RUNNING and not held:
        state["status"] = KILLED
    return {"run": folder.name, "trains": held, **state, **_given(folder), "lines": lines, "next": count}


def _given(folder: RunFolder) -> dict:
    """What the run was given that can be changed while it trains."""
    try:
        job = from_json(read_text(folder.job, MAX_BYTES), finite=False)
        training, previews = job["training"], job.get("previews") or {}
        prompts = [prompt["text"] for prompt in previews.get("prompts", ())]
        keeps = (training.get("checkpoints") or {}).get("keep")
        rate, every = training.get("learning_rate"), previews.get("every")
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {"learning_rate": rate, "prompts": prompts, "every": every, "keeps": keeps}


def begin(folder: RunFolder, node: str, now: str) -> None:
    """Note which node of which workflow shows a run, so that it is found again when the graph is opened."""
    folder.note(graph={"workflow": running_workflow(), "node": str(node)}, shown=now)
    tell(folder, node, Recorded(0, ()))  # a run that is reused has nothing more to tell


def tell(folder: RunFolder, node: str, event: Recorded) -> None:
    """Send new lines of a run's record to every open tab."""
    server = prompt_server()
    if server is not None:
        message = {"run": folder.name, "workflow": running_workflow(), "node": str(node)}
        server.send_sync(EVENT, {**message, "first": event.first, "lines": list(event.lines)})
