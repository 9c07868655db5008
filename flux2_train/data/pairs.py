"""Partners of images: references and masks in folders of their own, found by relative name without its ending."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from .images import OTHER_SUFFIXES, SUFFIXES
from .index import Signature, signature

FOREIGN_CACHES = ("_latent_cache", "_t_e_cache")  # what other trainers leave in a folder of images
NAMED = 5  # files a message names before it only counts


def walk(folder: Path, subfolders: bool = True, apart: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Every file below ``folder``; links are followed, once each, hidden folders and those in ``apart`` left out."""
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
    """(images, pictures of kinds that are not read) below ``folder`` in a fixed order."""
    files = sorted(walk(folder, subfolders, apart))
    images = [p for p in files if p.suffix.lower() in SUFFIXES]
    return images, [p for p in files if p.suffix.lower() in OTHER_SUFFIXES]


def states(place: Path) -> list[tuple[str, Signature]]:
    """Path and state of every file below a folder, or around a JSONL file: changes when any of them does."""
    folder = place if place.is_dir() else place.parent
    if not folder.is_dir():
        return []
    return [(str(p), signature(p.stat() if p.exists() else p.lstat())) for p in sorted(walk(folder))]


def by_name(folder: Path, subfolders: bool = True) -> dict[str, Path]:
    """Images below ``folder`` by relative name without ending. Raises UserError for two of one name."""
    found: dict[str, Path] = {}
    for path in listing(folder, subfolders)[0]:
        name = name_of(path, folder)
        if name in found:
            raise UserError(
                f"{folder} has {found[name].name} and {path.name}; only one file of a name can be a partner."
            )
        found[name] = path
    return found


def name_of(path: Path, folder: Path) -> str:
    """The relative name that partners share."""
    return path.relative_to(folder).with_suffix("").as_posix()


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return shown(", ".join(names[:NAMED])) + rest


def shown(text: str) -> str:
    """The text as it can be shown: of file names in an unknown encoding, what can be read."""
    return text.encode(errors="replace").decode()
