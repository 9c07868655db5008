"""Routes that change a data folder: captions, marks and masks; and the one that clears what no data set uses."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

from ...flux2_train.data import sidecar
from ...flux2_train.data.captions import MAX_BYTES
from ...flux2_train.data.curate import edits, listed, thumbnails
from ...flux2_train.errors import UserError
from ...flux2_train.host.loading import places
from ...flux2_train.settings.dataset_folder import DatasetSettings
from . import data
from .data import EXAMPLE, in_sentences, settings_of
from .requests import body

MOST_CAPTIONS = 1000  # of one request
MOST_BYTES = 1 << 23
MOST_MASK_BYTES = edits.MAX_MASK_BYTES * 4 // 3 + 100_000
LONGEST_ETAG = 64


def _place(asked: dict) -> tuple[DatasetSettings, Path]:
    """The settings of a request, and its folder. Raises UserError if files there may not be changed."""
    settings = settings_of(asked)
    root = sidecar.root_of(settings.folder)
    if not root.is_dir():
        raise UserError(f"There is no folder {root}.")
    if not places.may_write(root):
        raise UserError("The example that comes with the pack stays as it is: copy its folder into the input folder.")
    return settings, root


def _etag(values: dict) -> str:
    value = values.get("etag", "")
    if not isinstance(value, str) or len(value) > LONGEST_ETAG:
        raise UserError("etag must be what the list of pictures gave.")
    return value


@in_sentences
async def captions(request: web.Request) -> web.Response:
    """POST {"settings": ..., "captions": [{"name", "text", "etag"}]}: write captions; ``text`` null removes the file.

    Answers ``written`` (new etags), ``changed`` (what somebody else wrote meanwhile) and ``wrong`` (sentences), each by
    the picture's name.
    """
    asked = await body(request, EXAMPLE, MOST_BYTES)
    settings, root = _place(asked)
    given = asked.get("captions")
    if not isinstance(given, list) or not given or len(given) > MOST_CAPTIONS:
        raise UserError(f"captions must be a list of 1 to {MOST_CAPTIONS}.")
    return web.json_response(
        await asyncio.to_thread(_write_captions, settings, root, [_caption(each) for each in given])
    )


def _caption(each: object) -> tuple[object, str | None, str]:
    text = each.get("text") if isinstance(each, dict) else 0
    if not isinstance(text, str | None) or "name" not in each:
        raise UserError('Each caption needs "name", "text" and "etag".')
    if text is not None and (len(text.encode(errors="replace")) > MAX_BYTES or _has_surrogates(text)):
        raise UserError(f"A caption has at most {MAX_BYTES} bytes of Unicode text.")
    return each["name"], text, _etag(each)


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _write_captions(settings: DatasetSettings, root: Path, given: list[tuple[object, str | None, str]]) -> dict:
    folder = listed.open_folder(settings, places.may_read)
    if folder.why_fixed:
        raise UserError(folder.why_fixed)
    answer: dict[str, dict] = {"written": {}, "changed": {}, "wrong": {}}
    for name, text, seen in given:
        try:
            answer["written"][str(name)] = edits.write_caption(edits.picture(root, name, places.may_read), text, seen)
        except edits.Changed as error:
            answer["changed"][str(name)] = error.now
        except UserError as error:
            answer["wrong"][str(name)] = str(error)
    return answer


@in_sentences
async def marks(request: web.Request) -> web.Response:
    """POST {"settings": ..., "marks": {NAME: {"was": {...}, "now": {...}}}}: leave out or repeat; all or nothing."""
    asked = await body(request, EXAMPLE, MOST_BYTES)
    _, root = _place(asked)
    given = asked.get("marks")
    if not isinstance(given, dict) or not given or len(given) > sidecar.MOST_PICTURES:
        raise UserError('marks must be {NAME: {"was": {...}, "now": {...}}}.')
    changes = {sidecar.picture_name(name): _change(name, each) for name, each in given.items()}
    await asyncio.to_thread(edits.write_marks, root, changes)
    return web.json_response({})


def _change(name: str, each: object) -> tuple[sidecar.Mark, sidecar.Mark]:
    if not isinstance(each, dict):
        raise UserError('marks must be {NAME: {"was": {...}, "now": {...}}}.')
    return sidecar.mark_of(name, each.get("was")), sidecar.mark_of(name, each.get("now"))


@in_sentences
async def mask(request: web.Request) -> web.Response:
    """POST {"settings": ..., "name": PICTURE, "png": BASE64, "etag": ETAG}: write a mask; ``png`` null removes it."""
    asked = await body(request, EXAMPLE, MOST_MASK_BYTES)
    settings, root = _place(asked)
    png = asked.get("png")
    if not isinstance(png, str | None):
        raise UserError("png must be a PNG in base64, or null.")
    path, seen = edits.picture(root, asked.get("name"), places.may_read), _etag(asked)
    chosen = settings.mask_options.folder
    if chosen and not places.may_write(chosen):
        raise UserError("The masks of the pack's own example stay as they are.")
    return web.json_response({"etag": await asyncio.to_thread(edits.write_mask, settings, root, path, png, seen)})


@in_sentences
async def clear(request: web.Request) -> web.Response:
    """POST {"clear": "unused"}: remove cached latents and embeds that no data set uses, and old thumbnails."""
    if (await body(request, '{"clear": "unused"}')).get("clear") != "unused":
        raise UserError('Send {"clear": "unused"}.')
    return web.json_response({"caches": await asyncio.to_thread(_clear)})


def _clear() -> list[dict]:
    thumbnails.bound(data.kept_folder(), 0)
    for _, store in data.stores():
        store.prune()
    return data.caches()


# method, path, what answers; docs/routes.md has the same table in words
ROUTES = (
    ("POST", "/flux2_train/data/pictures", data.pictures),
    ("GET", "/flux2_train/data/thumbnail", data.thumbnail),
    ("GET", "/flux2_train/data/mask", data.mask),
    ("GET", "/flux2_train/data/folders", data.folders),
    ("GET", "/flux2_train/data/cache", data.cache),
    ("POST", "/flux2_train/data/tokens", data.tokens),
    ("POST", "/flux2_train/data/captions", captions),
    ("POST", "/flux2_train/data/marks", marks),
    ("POST", "/flux2_train/data/mask", mask),
    ("POST", "/flux2_train/data/cache", clear),
)
