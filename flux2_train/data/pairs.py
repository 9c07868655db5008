"""Partners of images: references and masks in folders of their own, found by relative name without its ending."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from .images import OTHER_SUFFIXES, SUFFIXES
from .index import Signature, signature

FOREIGN_CACHES = ("_latent_cache", "_t_e_cache")  # folders that other trainers leave in a folder of images
NAMED = 5  # files that a message names; it only counts the others


def walk(folder: Path, subfolders: bool = True, apart: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Every file below ``folder``, except hidden ones and those in the folders ``apart``. Links are followed once."""
    pending, seen = [folder], {os.path.realpath(p) for p in apart}
    while pending:
        here = pending.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        for entry in os.scandir(here):
            if entry.name.startswith((".", *FOREIGN_CACHES)):
                continue
            if entry.is_dir():
                pending += [here / entry.name] if subfolders else []
            else:
                yield here / entry.name


def listing(folder: Path, subfolders: bool = True, apart: tuple[Path, ...] = ()) -> tuple[list[Path], list[Path]]:
    """The image files below ``folder`` in a fixed order: those that are read, and those of kinds that are not."""
    files = sorted(walk(folder, subfolders, apart))
    images = [p for p in files if p.suffix.lower() in SUFFIXES]
    return images, [p for p in files if p.suffix.lower() in OTHER_SUFFIXES]


def states(place: Path) -> list[tuple[str, Signature]]:
    """Path and signature of every file below a folder, or below the folder of a JSONL file."""
    folder = place if place.is_dir() else place.parent
    if not folder.is_dir():
        return []
    return [(str(p), signature(p.stat() if p.exists() else p.lstat())) for p in sorted(walk(folder))]


def by_name(folder: Path, subfolders: bool = True) -> dict[str, Path]:
    """Images below ``folder`` by relative name without ending. Raises UserError for two of one name."""
    paths: dict[str, Path] = {}
    for path in listing(folder, subfolders)[0]:
        name = name_of(path, folder)
        if name in paths:
            raise UserError(
                f"{folder} has {paths[name].name} and {path.name}; only one file of a name can be a partner."
            )
        paths[name] = path
    return paths


def name_of(path: Path, folder: Path) -> str:
    """The relative name that partners share."""
    return path.relative_to(folder).with_suffix("").as_posix()


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return shown(", ".join(names[:NAMED])) + rest


def shown(text: str) -> str:
    """The text with ``?`` for what is not Unicode, such as file names in an unknown encoding."""
    return text.encode(errors="replace").decode()
