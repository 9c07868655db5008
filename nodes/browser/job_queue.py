"""Routes of the queue of jobs: what waits, adding variations of a run, and changing the order."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from aiohttp import web

from ...flux2_train.errors import UserError
from ...flux2_train.host.loading import files
from ...flux2_train.names import shown
from ...flux2_train.runs.folder import RunFolder
from ...flux2_train.runs.library.listing import job_values
from ...flux2_train.runs.library.removal import existing
from ...flux2_train.runs.queue.folder import DONE, FAILED, PAUSED, RUNNING, STOPPED, WAITING, Entry, Queue
from ...flux2_train.runs.queue.grid import require_free, variations
from ...flux2_train.runs.queue.place import own_queue
from ...flux2_train.settings.base import plain
from ...flux2_train.settings.job import changed
from .requests import body, in_words, run_name

LISTED = (RUNNING, WAITING, PAUSED, STOPPED, FAILED, DONE)
MOST_BYTES = 1 << 14
MOST_SETTINGS, MOST_TEXT = 16, 300
LONGEST_NAME = 400
ADD = '{"run": NAME, "vary": {SETTING: [TEXT, ...]}, "set": {SETTING: TEXT}}'
CHANGE = '{"job": NAME, "do": "move" or "remove" or "again", "place": NUMBER}'
PAUSE = '{"paused": true or false}'


@in_words
async def waiting(request: web.Request) -> web.Response:
    """GET: every job of the queue with its state, and whether the queue is paused."""
    return web.json_response(await asyncio.to_thread(_shown))


def _shown() -> dict[str, Any]:
    queue = own_queue()
    return {"paused": queue.paused, "jobs": [_row(entry) for entry in queue.entries(*LISTED)]}


def _row(entry: Entry) -> dict[str, str]:
    texts = {name: shown(text, 1000) for name, text in entry.about().items()}
    return {"name": entry.name, "title": entry.title, "state": entry.state, **texts}


@in_words
async def add(request: web.Request) -> web.Response:
    """POST ADD: put a run's job into the queue, with ``set`` changed, once for every combination of ``vary``.

    Without ``vary`` the job keeps its name, so that the run goes on; a job of it that was paused or stopped is no more.
    """
    given = await body(request, ADD, MOST_BYTES)
    name = run_name(given.get("run"))
    vary = _texts(given.get("vary", {}), list)
    sets = _texts(given.get("set", {}), str)
    added = await asyncio.to_thread(_add, name, vary, sets)
    return web.json_response({"added": added})


def _texts(value: Any, kind: type) -> dict[str, Any]:
    """Settings with their text, or with a list of texts. Raises UserError for anything else."""
    known = isinstance(value, dict) and len(value) <= MOST_SETTINGS
    if not known or not all(isinstance(each, kind) for each in value.values()):
        raise UserError(f"The request is not {ADD}.")
    texts = [text for each in value.values() for text in (each if kind is list else [each])]
    if not all(isinstance(text, str) and len(text) <= MOST_TEXT for text in [*texts, *value]):
        raise UserError(f"The request is not {ADD}, with texts of at most {MOST_TEXT} characters.")
    return value


def _add(name: str, vary: dict[str, list[str]], sets: dict[str, str]) -> list[str]:
    folder, queue = existing(files.run_folder(), name), own_queue()
    require_free([*sets, *vary])
    values = _changed(folder, sets)
    what = ", ".join(f"{setting} {text}" for setting, text in sets.items())
    jobs = variations(values, vary)
    if not vary:
        _remove_ended_early(queue, name)
    return [queue.add(job, ", ".join(filter(None, (folder.name, what, title if vary else ""))), folder.name, not vary)
            for title, job in jobs]  # fmt: skip


def _remove_ended_early(queue: Queue, run: str) -> None:
    """Remove the jobs that were paused or stopped and would go on with this very run: a new one does so."""
    for entry in queue.entries(PAUSED, STOPPED):
        with suppress(UserError):  # one that cannot be read, or that somebody has just let wait again
            values = entry.values()
            if values.get("goes_on") is True and values.get("of") == run:
                queue.remove(entry.name)


def _changed(folder: RunFolder, sets: dict[str, str]) -> dict[str, Any]:
    values = job_values(folder)
    if not values:
        raise UserError(f"The run {folder.name} has no job file that can be read.")
    values["output"] = {}  # a queued job writes to ComfyUI's own folders
    return plain(changed(values, [f"{setting}={text}" for setting, text in sets.items()]))


@in_words
async def change(request: web.Request) -> web.Response:
    """POST CHANGE: move a waiting job, remove one that nobody works at, or let one that has ended wait again."""
    given = await body(request, CHANGE)
    name, do, place = given.get("job"), given.get("do"), given.get("place", 0)
    known = isinstance(name, str) and len(name) <= LONGEST_NAME and do in ("move", "remove", "again")
    if not known or type(place) is not int:
        raise UserError(f"The request is not {CHANGE}.")
    queue = own_queue()
    actions = {"move": lambda: queue.move(name, place), "remove": lambda: queue.remove(name),
               "again": lambda: queue.again(name)}  # fmt: skip
    await asyncio.to_thread(actions[do])
    return web.json_response(await asyncio.to_thread(_shown))


@in_words
async def pause(request: web.Request) -> web.Response:
    """POST PAUSE: begin no further job, or go on."""
    paused = (await body(request, PAUSE)).get("paused")
    if not isinstance(paused, bool):
        raise UserError(f"The request is not {PAUSE}.")
    await asyncio.to_thread(own_queue().pause, paused)
    return web.json_response(await asyncio.to_thread(_shown))


ROUTES = (
    ("GET", "/flux2_train/queue", waiting),
    ("POST", "/flux2_train/queue/add", add),
    ("POST", "/flux2_train/queue/change", change),
    ("POST", "/flux2_train/queue/pause", pause),
)
