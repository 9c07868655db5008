"""Routes of the tab FLUX.2 runs: what runs there are, one of them in detail, two compared; removing one."""

from __future__ import annotations

import asyncio
import io
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from aiohttp import web

from ...flux2_train.bounded import is_file, read_bytes
from ...flux2_train.data.images import load_rgb
from ...flux2_train.errors import UserError
from ...flux2_train.host.loading import files
from ...flux2_train.names import shown
from ...flux2_train.runs.folder import RunFolder
from ...flux2_train.runs.library import curves
from ...flux2_train.runs.library.differences import differences, sentence
from ...flux2_train.runs.library.listing import Listing, Row, checkpoint_steps, job_values, read_row
from ...flux2_train.runs.library.removal import existing, remove_run
from ...flux2_train.runs.writers.png import PREVIEW
from ...flux2_train.settings.job import MAX_BYTES
from ..queue.putting import put
from .kept_graph import kept_graph
from .requests import body, in_words, run_name
from .server import prompt_server

MOST_ROWS = 200  # of one answer
MOST_POINTS = 2000  # of one curve
MOST_PICTURES = 2000
LOG_BYTES = 1 << 16  # the end of the log that is shown
SIZES = (96, 512, 2048)  # pixels of a picture's longer side
MOST_WORD = 200
LORA_NODE = "Flux2CheckpointLora"
A_RUN = '{"run": NAME}'


@cache
def _listing(runs: Path) -> Listing:
    return Listing(runs)


def listed() -> list[Row]:
    """Every run of ComfyUI's output folder."""
    return _listing(files.run_folder()).rows()


async def _asked(request: web.Request, name: str = "run") -> RunFolder:
    """The run that the query names. Raises UserError for another name than that of a run that is there."""
    return await asyncio.to_thread(existing, files.run_folder(), run_name(request.query.get(name)))


async def _run_and_values(request: web.Request) -> tuple[RunFolder, dict[str, Any]]:
    """The run that the request's JSON names, and all of that JSON."""
    given = await body(request, A_RUN)
    return await asyncio.to_thread(existing, files.run_folder(), run_name(given.get("run"))), given


def number(text: str | None, most: int, default: int = 0) -> int:
    """A whole number of a query from 0 to ``most``. Raises UserError for anything else."""
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= most):
        raise UserError(f"{shown(text)!r} is no whole number up to {most}.")
    return int(text)


@in_words
async def runs(request: web.Request) -> web.Response:
    """GET ?offset=0&count=100&word=TEXT: some of the runs, the newest first, and how many there are."""
    offset, count = number(request.query.get("offset"), 10**6), number(request.query.get("count"), MOST_ROWS, 100)
    word = request.query.get("word", "")[:MOST_WORD].casefold()
    rows = await asyncio.to_thread(listed)
    found = [row for row in rows if word in f"{row.name} {row.state} {row.settings}".casefold()]
    return web.json_response({
        "runs": [asdict(row) for row in found[offset : offset + count]], "found": len(found), "total": len(rows),
        "size": sum(row.size for row in rows),
    })  # fmt: skip


@in_words
async def details(request: web.Request) -> web.Response:
    """GET ?run=NAME: one run with its pictures and the end of its log."""
    folder = await _asked(request)
    return web.json_response(await asyncio.to_thread(_details, folder))


def _details(folder: RunFolder) -> dict[str, Any]:
    row = next((row for row in listed() if row.name == folder.name), None) or read_row(folder)
    graph = kept_graph(folder)
    return {
        **asdict(row), "pictures": _pictures(folder), "log": _end_of(folder.log) or _end_of(folder.plan),
        "graph": {name: bool(value) for name, value in graph.items()}, "job": is_file(folder.job),
        "newest": _is_newest(folder), "record": is_file(folder.record),
    }  # fmt: skip


def _is_newest(folder: RunFolder) -> bool:
    """Whether a graph of the run's name goes on with this run: LoRA Trainer takes the newest one of that name."""
    newest = RunFolder.last(folder.path.parent, str(folder.about().get("name", "")))
    return newest is not None and newest.name == folder.name


def _pictures(folder: RunFolder) -> list[dict]:
    """Every preview: file, step and number of its prompt, in the order of the steps."""
    try:
        names = [path.name for path in folder.previews.iterdir()]
    except OSError:
        return []
    matches = sorted((int(match[1]), int(match[2]), match[0]) for match in map(PREVIEW.fullmatch, names) if match)
    found = [{"step": step, "prompt": prompt, "file": name} for step, prompt, name in matches]
    bases = sorted({each["prompt"] for each in found if f"base_{each['prompt']}.png" in names})
    first = [{"step": None, "prompt": prompt, "file": f"base_{prompt}.png"} for prompt in bases]
    return [*first, *found[-MOST_PICTURES:]]


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            return file.read(LOG_BYTES).decode(errors="replace")
    except OSError:
        return ""


@in_words
async def curve(request: web.Request) -> web.Response:
    """GET ?run=NAME: (step, loss, smoothed loss) of at most MOST_POINTS steps."""
    folder = await _asked(request)
    return web.json_response({"rows": await asyncio.to_thread(curves.losses, folder, MOST_POINTS)})


@in_words
async def compare(request: web.Request) -> web.Response:
    """GET ?one=NAME&other=NAME: the settings that differ, in words."""
    one, other = await _asked(request, "one"), await _asked(request, "other")
    found = await asyncio.to_thread(lambda: differences(job_values(one), job_values(other)))
    return web.json_response({"differences": found, "sentence": sentence(found)})


@in_words
async def picture(request: web.Request) -> web.Response:
    """GET ?run=NAME&file=step_000100_1.png&size=96: a preview, made smaller."""
    folder, name = await _asked(request), request.query.get("file", "")
    size = number(request.query.get("size"), max(SIZES), SIZES[0])
    is_base = name.startswith("base_") and PREVIEW.fullmatch(name.replace("base_", "step_0_"))
    if size not in SIZES or not (PREVIEW.fullmatch(name) or is_base):
        raise UserError(f"{shown(name)!r} is no preview, or {size} is none of {SIZES}.")
    data = await asyncio.to_thread(_smaller, inside(folder, folder.previews / name), size)
    # the browser asks with the time of the run's last change behind it: another picture has another address
    return web.Response(body=data, content_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})


def inside(folder: RunFolder, path: Path) -> Path:
    """``path``, if it lies in the run's folder after all links are followed. Raises UserError otherwise."""
    if not path.resolve().is_relative_to(folder.path.resolve()) or not is_file(path):
        raise UserError(f"The run {folder.name} has no {shown(path.name)}.")
    return path


def _smaller(path: Path, size: int) -> bytes:
    image, held = load_rgb(path), io.BytesIO()
    image.thumbnail((size, size))
    image.save(held, "JPEG", quality=88)
    return held.getvalue()


@in_words
async def graph(request: web.Request) -> web.Response:
    """GET ?run=NAME: the workflow that began the run, and what was queued for it; each empty if it was not kept."""
    return web.json_response(await asyncio.to_thread(kept_graph, await _asked(request)))


@in_words
async def job(request: web.Request) -> web.Response:
    """GET ?run=NAME: the run's job file as text."""
    folder = await _asked(request)
    text = await asyncio.to_thread(read_bytes, inside(folder, folder.job), MAX_BYTES)
    return web.Response(body=text, content_type="text/plain", charset="utf-8")


@in_words
async def delete(request: web.Request) -> web.Response:
    """POST {"run": NAME}: remove the run's folder, unless it is being trained."""
    folder, _ = await _run_and_values(request)
    await asyncio.to_thread(remove_run, folder.path.parent, folder.name)
    return web.json_response({})


@in_words
async def lora(request: web.Request) -> web.Response:
    """POST {"run": NAME, "step": NUMBER}: queue the writing of a LoRA file from that checkpoint."""
    folder, given = await _run_and_values(request)
    step = given.get("step")
    if type(step) is not int or step not in await asyncio.to_thread(checkpoint_steps, folder):
        raise UserError(f"The run {folder.name} has no checkpoint {shown(str(step))}.")
    return web.json_response({"prompt_id": put(prompt_server(), LORA_NODE, {"run": folder.name, "step": step})})


ROUTES = (
    ("GET", "/flux2_train/runs", runs),
    ("GET", "/flux2_train/runs/details", details),
    ("GET", "/flux2_train/runs/curve", curve),
    ("GET", "/flux2_train/runs/compare", compare),
    ("GET", "/flux2_train/runs/picture", picture),
    ("GET", "/flux2_train/runs/graph", graph),
    ("GET", "/flux2_train/runs/job", job),
    ("POST", "/flux2_train/runs/delete", delete),
    ("POST", "/flux2_train/runs/lora", lora),
)
