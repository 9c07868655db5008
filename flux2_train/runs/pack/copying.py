"""Copies the pictures, captions, masks and references that a data set uses into a pack, under the same relative names.

What training does not use stays behind: other files of the folders, other keys of caption files, and every path.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ...atomic import write_text
from ...data import captions as texts
from ...data.dataset import Dataset, Item
from ...data.pairs import is_jsonl
from ...errors import UserError
from ...names import shown
from ...settings.dataset_folder import JSONL, TEXT_FILE, DatasetSettings
from .contents import Place

TABLE = "captions.jsonl"


def copy_folder(root: Path, name: str, dataset: Dataset, number: int) -> tuple[Place, DatasetSettings]:
    """Copy the folder with that number of a data set to ``root / name``. Returns its place and its settings there."""
    items = [item for item in dataset.items if item.source == number]
    request, pictures = dataset.requests[number], root / name / "pictures"
    table = _table(request)
    own = table.parent if table else Path(request.folder)
    _copy({item.path for item in items}, own, pictures)
    folders = [Path(folder) for folder in request.references]
    if table:
        _copy({view.path for item in items for view in item.references}, own, pictures)
        _write_table(table, items, pictures / TABLE)
    elif request.captions == TEXT_FILE:
        _copy_captions({item.path for item in items}, own, pictures)
    references = tuple(f"{name}/references_{n}" for n in range(len(folders)))
    for folder, there in zip(folders, references, strict=True):
        _copy(_below(folder, (view.path for item in items for view in item.references)), folder, root / there)
    masks = f"{name}/masks" if request.mask_options.folder else ""
    if masks:
        mask_folder = Path(request.mask_options.folder)
        _copy({item.mask.view.path for item in items if item.mask}, mask_folder, root / masks)
    folder = f"{name}/pictures/{TABLE}" if is_jsonl(Path(request.folder)) else f"{name}/pictures"
    marked = tuple((each, times) for each, times in request.pictures or () if times)
    return Place(folder, masks, references), replace(request, pictures=marked)


def _table(request: DatasetSettings) -> Path | None:
    """The JSONL file that a data set is read from, if it is."""
    folder = Path(request.folder)
    if is_jsonl(folder):
        return folder
    return next(iter(sorted(folder.glob("*.jsonl"))), None) if request.captions == JSONL else None


def _below(folder: Path, paths: Iterable[Path]) -> set[Path]:
    return {path for path in paths if path.is_relative_to(folder)}


def _copy(paths: set[Path], own: Path, to: Path) -> None:
    """Copy files, whose links are followed, with their names below ``own``."""
    to.mkdir(parents=True, exist_ok=True)
    for path in sorted(paths):
        copy_file(path, to / path.relative_to(own))


def copy_file(path: Path, to: Path) -> None:
    """Copy the content of a file, and nothing else of it: no owner, no rights, no date."""
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)


def _copy_captions(images: set[Path], own: Path, to: Path) -> None:
    for image in sorted(images):
        path = next((each for each in texts.beside(image) if each.is_file()), None)
        if path is None:
            continue
        target = to / path.relative_to(own)
        if path.suffix.lower() == ".json":  # it may hold much else
            write_text(target, json.dumps({"caption": texts.read_file(path)}, ensure_ascii=False) + "\n")
        else:
            copy_file(path, target)


def _write_table(table: Path, items: list[Item], to: Path) -> None:
    used, lines = {item.path for item in items}, []
    for row in texts.read_jsonl(table):
        if row.image not in used:
            continue
        values: dict = {"image": _name(row.image, table)}
        if row.captions is not None:
            values["caption"] = row.captions
        if row.controls:
            values["control"] = [_name(path, table) for path in row.controls]
        lines.append(json.dumps(values, ensure_ascii=False))
    write_text(to, "\n".join(lines) + "\n")


def _name(path: Path, table: Path) -> str:
    return PurePosixPath(path.relative_to(table.parent)).as_posix()


def require_outside(root: Path, dataset: Dataset) -> None:
    """Raise UserError if a pack would lie in a folder of the data set, where its pictures would be found as well."""
    for request in dataset.requests:
        own = Path(request.folder).resolve()
        if root.resolve().is_relative_to(own if own.is_dir() else own.parent):
            raise UserError(f"{shown(str(root), 300)} lies in the data folder {request.folder}; name a place outside.")
