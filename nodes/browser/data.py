"""Routes that show a data folder: its pictures, their thumbnails and masks, and which folders there are."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path

import folder_paths
from aiohttp import web

from ...flux2_train.data import sidecar
from ...flux2_train.data.curate import edits, listed, thumbnails
from ...flux2_train.data.images import SUFFIXES
from ...flux2_train.data.index import Index
from ...flux2_train.data.store import Store
from ...flux2_train.errors import UserError
from ...flux2_train.host.encoding.token_count import counter
from ...flux2_train.host.loading import files, places
from ...flux2_train.runs import verdict_files
from ...flux2_train.settings import base
from ...flux2_train.settings.crops import CropSettings
from ...flux2_train.settings.dataset_folder import CaptionSettings, DatasetSettings, MaskSettings, ReferenceSettings
from .requests import Route, body, in_words

SECTIONS = {
    "caption_options": CaptionSettings, "crop_options": CropSettings, "mask_options": MaskSettings,
    "reference_options": ReferenceSettings,
}  # fmt: skip
EXAMPLE = '{"settings": {"folder": NAME, ...}, ...}'
MOST_BYTES = 1 << 23  # of a request with captions
PAGE = 500  # pictures of one answer at most
MOST_TEXTS = 1000  # that are counted at once
MOST_FOLDERS, MOST_COUNTED = 500, 10_000  # that the picker lists; files of each that it counts
FOR_A_DAY = {"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}
READING = asyncio.Semaphore(1)  # large folders are read one at a time
DECODING = asyncio.Semaphore(2)


def in_sentences(route: Route) -> Route:
    """The same route; what is wrong is answered as ``{"error": SENTENCE}`` with status 400.

    What somebody else has changed meanwhile is answered with 409 and ``now``, what is there.
    """

    @in_words
    @wraps(route)
    async def answered(request: web.Request) -> web.StreamResponse:
        try:
            return await route(request)
        except edits.Changed as error:
            return web.json_response({"error": str(error), "now": error.now}, status=409)
        except UserError:
            raise
        except (OSError, ValueError, RecursionError) as error:  # names and paths that no file system takes
            reason = getattr(error, "strerror", None) or "it cannot be read"
            raise UserError(f"That is no name that can be used ({reason}).") from error

    return answered


def settings_of(asked: dict) -> DatasetSettings:
    """The settings of Dataset Folder and its option nodes in a request, with full paths. Raises UserError."""
    values = asked.get("settings")
    if not isinstance(values, dict) or not isinstance(values.get("folder"), str):
        raise UserError(f"The request is not {EXAMPLE}.")
    chosen = {name: values[name] for name in base.names(DatasetSettings) if name in values}
    sections = {name: base.read(kind, _own(kind, values.get(name)), name) for name, kind in SECTIONS.items()}
    mask = sections["mask_options"]
    if mask.folder:
        sections["mask_options"] = replace(mask, folder=files.resolve(str(mask.folder)))
    chosen["folder"] = files.resolve(values["folder"])
    read = base.read(DatasetSettings, {**chosen, **sections}, "")
    return replace(read, references=tuple(files.resolve(str(folder)) for folder in read.references))


def _own(kind: type, values: object) -> dict:
    return {name: values[name] for name in base.names(kind) if name in values} if isinstance(values, dict) else {}


def number(values: dict, name: str, most: int) -> int:
    """A whole number from 0 to ``most`` in a request. Raises UserError."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise UserError(f"{name} must be a whole number from 0 to {most}.")
    return value


@in_sentences
async def pictures(request: web.Request) -> web.Response:
    """POST {"settings": ..., "start": 0, "count": 200}: the pictures of a folder from one number on."""
    asked = await body(request, EXAMPLE, MOST_BYTES)
    start, count = number(asked, "start", 10_000_000), number(asked, "count", PAGE)
    settings = settings_of(asked)
    async with READING:
        return web.json_response(await asyncio.to_thread(_page, settings, start, count))


def _page(settings: DatasetSettings, start: int, count: int) -> dict:
    folder = listed.open_folder(settings, places.may_read)
    found = listed.page(folder, start, count, Index(files.cache_folder()))
    run, verdicts = verdict_files.newest(files.run_folder(), folder.root)
    for each in found:
        verdict = verdicts.get(each["name"])
        each |= {"verdict": verdict.verdict, "reason": verdict.reason, "better": verdict.better} if verdict else {}
    fixed = folder.why_fixed
    why = (
        "" if places.may_write(folder.root) else "The example that comes with the pack stays as it is: copy its folder."
    )
    return {
        "folder": folder.root.name, "total": len(folder.paths), "start": start, "pictures": found, "run": run,
        "fixed": why or fixed, "readonly": why,
    }  # fmt: skip


@in_sentences
async def thumbnail(request: web.Request) -> web.Response:
    """GET ?folder=NAME&name=PICTURE&side=256: a small picture as JPEG."""
    _, path = _named(request)
    side = request.query.get("side", "256")
    if side not in map(str, thumbnails.SIDES):
        raise UserError("side must be 256 or 1024.")
    async with DECODING:
        data = await asyncio.to_thread(thumbnails.thumbnail, path, int(side), kept_folder())
    return web.Response(body=data, content_type="image/jpeg", headers=FOR_A_DAY)


def kept_folder() -> Path:
    """Where thumbnails are kept."""
    return files.cache_folder() / "thumbnails"


def _named(request: web.Request) -> tuple[Path, Path]:
    """(folder, picture) that a request names. Raises UserError."""
    place = files.resolve(request.query.get("folder", ""))
    root = sidecar.root_of(place)
    return root, edits.picture(root, request.query.get("name", ""), places.may_read)


@in_sentences
async def mask(request: web.Request) -> web.Response:
    """GET ?folder=NAME&name=PICTURE&masks=FOLDER: the mask of a picture as PNG, with its ETag; empty without one."""
    root, path = _named(request)
    chosen = request.query.get("masks", "").strip()
    folder = files.resolve(chosen) if chosen else root / sidecar.MASKS
    data, mark = await asyncio.to_thread(edits.read_mask, folder, root, path)
    headers = {"X-Flux2-Etag": mark, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return web.Response(body=data, content_type="image/png", headers=headers)


@in_sentences
async def tokens(request: web.Request) -> web.Response:
    """POST {"flavour": NAME, "texts": [...]}: tokens of each text, or words where no tokenizer is at hand."""
    asked = await body(request, '{"flavour": NAME, "texts": [...]}', MOST_BYTES)
    texts = asked.get("texts")
    if not isinstance(texts, list) or len(texts) > MOST_TEXTS or not all(isinstance(text, str) for text in texts):
        raise UserError(f"texts must be a list of at most {MOST_TEXTS} texts.")
    return web.json_response(await asyncio.to_thread(_counted, str(asked.get("flavour", "")), texts))


def _counted(flavour: str, texts: list[str]) -> dict:
    count: Callable[[str], int] | None = counter(flavour)
    counts = [count(text) if count else len(text.split()) for text in texts]
    return {"counts": counts, "what": "tokens" if count else "words"}


@in_sentences
async def folders(request: web.Request) -> web.Response:
    """GET: the folders of pictures in ComfyUI's input folder, and those that were trained on before."""
    return web.json_response({"folders": await asyncio.to_thread(_folders)})


def _folders() -> list[dict]:
    root = Path(folder_paths.get_input_directory())
    own = [path for path in _below(root) for path in (path, *_below(path))][:MOST_FOLDERS]
    found = [{"name": path.relative_to(root).as_posix(), "pictures": _pictures(path), "used": False} for path in own]
    names = {str(root / each["name"]) for each in found}
    before = [Path(name) for name in Index(files.cache_folder()).folders(MOST_FOLDERS) if name not in names]
    for path in before:
        if places.may_read(path) and path.is_dir():
            inside = path.is_relative_to(places.SHIPPED)
            name = path.relative_to(places.SHIPPED).as_posix() if inside else str(path)
            found.append({"name": name, "pictures": _pictures(path), "used": True})
    return found


def _below(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith("."))
    except OSError:
        return []
    return [folder / name for name in names[:MOST_FOLDERS]]


def _pictures(folder: Path) -> int:
    """How many pictures lie in a folder itself; not more than MOST_COUNTED files are looked at."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for _, entry in zip(range(MOST_COUNTED), entries, strict=False)]
    except OSError:
        return 0
    return sum(name.lower().endswith(SUFFIXES) for name in names)


@in_sentences
async def cache(request: web.Request) -> web.Response:
    """GET: entries and bytes of cached latents and embeds, of all and of those that no data set uses."""
    return web.json_response({"caches": await asyncio.to_thread(caches)})


def caches() -> list[dict]:
    """The sizes of every cache, as JSON."""
    return [_sizes(name, store.sizes()) for name, store in stores()]


def _sizes(name: str, sizes) -> dict:
    return {
        "place": name, "entries": sizes.entries, "bytes": sizes.size, "unused": sizes.unused_entries,
        "unused_bytes": sizes.unused_size,
    }  # fmt: skip


def stores() -> list[tuple[str, Store]]:
    """The caches that are there, by the name of their place."""
    there = [(name, files.cache_folder(name)) for name in files.CACHE_PLACES]
    return [(name, Store(folder)) for name, folder in there if (folder / "index.sqlite").is_file()]
