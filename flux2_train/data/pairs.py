"""Partners of images: references and masks in folders of their own, found by relative name without its ending."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ..bounded import is_file, reason
from ..errors import UserError
from ..names import shown
from .images import OTHER_SUFFIXES, SUFFIXES
from .index import Signature, signature

FOREIGN_CACHES = ("_latent_cache", "_t_e_cache")  # folders that other trainers leave in a folder of images
MOST_FILES = 1_000_000  # in a folder of images: more is a mistyped folder, or a trap
NAMED = 5  # files that a message names; it only counts the others


MayRead = Callable[[Path], bool]


def anywhere(path: Path) -> bool:
    """Every place may be read: what a person at this computer may."""
    return True


def _nobody(text: str) -> None:
    """Tells nobody."""


def walk(
    folder: Path,
    subfolders: bool = True,
    apart: tuple[Path, ...] = (),
    may_read: MayRead = anywhere,
    tell: Callable[[str], None] = _nobody,
) -> Iterator[Path]:
    """Every file below ``folder``, except hidden ones and those in the folders ``apart``. Links are followed once.

    ``tell`` gets a clause for each folder that cannot be opened, and for each link to a place that ``may_read`` does
    not allow. Raises UserError if ``folder`` itself cannot be opened, or holds more than MOST_FILES files.
    """
    pending, seen, count = [folder], {os.path.realpath(p) for p in apart}, 0
    while pending:
        here = pending.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        for entry in _entries(here, folder, tell):
            path = here / entry.name
            if entry.name.startswith((".", *FOREIGN_CACHES)):
                continue
            if entry.is_symlink() and not may_read(path):
                tell(f"{shown(entry.name)} is a link to a place that may not be read")
            elif _is_folder(entry):
                pending += [path] if subfolders else []
            else:
                yield path
            count += 1
            if count > MOST_FILES:
                raise UserError(f"{folder} holds more than {MOST_FILES} files: name a folder of images only.")


def _entries(here: Path, root: Path, tell: Callable[[str], None]) -> list[os.DirEntry]:
    try:
        with os.scandir(here) as entries:
            return list(entries)
    except OSError as error:
        if here == root:
            raise UserError(f"{root} cannot be opened ({reason(error)}); name a folder that you may read.") from error
        tell(f"{shown(here.name)} cannot be opened ({reason(error)})")
        return []


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it says so
        return False


def listing(
    folder: Path,
    subfolders: bool = True,
    apart: tuple[Path, ...] = (),
    may_read: MayRead = anywhere,
    tell: Callable[[str], None] = _nobody,
) -> tuple[list[Path], list[Path]]:
    """The image files below ``folder`` in a fixed order: those that are read, and those of kinds that are not.

    ``may_read`` and ``tell`` are those of ``walk``.
    """
    files = sorted(walk(folder, subfolders, apart, may_read, tell))
    images = [p for p in files if p.suffix.lower() in SUFFIXES]
    return images, [p for p in files if p.suffix.lower() in OTHER_SUFFIXES]


def states(place: Path, may_read: MayRead = anywhere) -> list[tuple[str, Signature]]:
    """Path and signature of every file below a folder, or below the folder of a JSONL file that is there."""
    folder = place if place.is_dir() else place.parent if is_jsonl(place) else None
    return [(str(p), _state(p)) for p in sorted(walk(folder, may_read=may_read))] if folder else []


def is_jsonl(place: Path) -> bool:
    """Whether ``place`` is a JSONL file that is there."""
    return place.suffix.lower() == ".jsonl" and is_file(place)


def _state(path: Path) -> Signature:
    try:
        return signature(os.stat(path))
    except OSError:
        pass
    try:
        return signature(os.lstat(path))
    except OSError:  # gone since the folder was listed
        return 0, 0, 0, 0


def by_name(
    folder: Path, subfolders: bool = True, may_read: MayRead = anywhere, tell: Callable[[str], None] = _nobody
) -> dict[str, Path]:
    """Images below ``folder`` by relative name without ending. Raises UserError for two of one name."""
    paths: dict[str, Path] = {}
    for path in listing(folder, subfolders, (), may_read, tell)[0]:
        name = name_of(path, folder)
        if name in paths:
            raise UserError(
                f"{folder} has {shown(paths[name].name)} and {shown(path.name)}; only one file of a name can be a "
                "partner."
            )
        paths[name] = path
    return paths


def name_of(path: Path, folder: Path) -> str:
    """The relative name that partners share."""
    return path.relative_to(folder).with_suffix("").as_posix()


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(shown, names[:NAMED])) + rest
