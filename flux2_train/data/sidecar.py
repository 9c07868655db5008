"""The small file in a data folder that says which pictures are left out and which are seen more often.

    {"version": 1, "masks": true, "pictures": {"03.jpg": {"exclude": true}, "close/07.jpg": {"repeat": 3}}}

Names are relative to the folder, with ``/`` between their parts. ``masks`` says that the folder's subfolder ``masks``
holds masks and no pictures. What the file says is recorded with every run, so that nothing hidden acts on a training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..bounded import from_json, is_file, read_text
from ..errors import UserError
from ..names import counted, shown
from ..settings.dataset_folder import MOST_TIMES, Times
from .captions import SIDECAR as NAME

MASKS = "masks"  # the subfolder of masks that are painted where Mask Options names no folder
VERSION = 1
MAX_BYTES = 1 << 23
MOST_PICTURES = 100_000
LONGEST_NAME = 1024  # characters
KEYS = {"exclude", "repeat"}


@dataclass(frozen=True)
class Mark:
    """What is said of one picture: left out, and how often it is seen where others are seen once."""

    exclude: bool = False
    repeat: int = 1

    @property
    def times(self) -> int:
        """How often the picture is seen; 0 if it is left out."""
        return 0 if self.exclude else self.repeat

    def plain(self) -> dict:
        """As JSON, only what is not as usual."""
        return {**({"exclude": True} if self.exclude else {}), **({"repeat": self.repeat} if self.repeat != 1 else {})}


@dataclass(frozen=True)
class Sidecar:
    """The content of the file. ``pictures`` are marks by relative name."""

    pictures: Mapping[str, Mark] = field(default_factory=dict)
    masks: bool = False

    @property
    def times(self) -> Times:
        """(name, times) of every picture that is not seen once, in the order of names."""
        return tuple((name, mark.times) for name, mark in sorted(self.pictures.items()) if mark.times != 1)

    def text(self) -> str:
        """The file's text."""
        pictures = {name: mark.plain() for name, mark in sorted(self.pictures.items()) if mark != Mark()}
        values = {"version": VERSION, **({"masks": True} if self.masks else {}), "pictures": pictures}
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def root_of(place: Path) -> Path:
    """The folder whose file counts for a data set: the folder itself, or that of its JSONL file."""
    return place if place.is_dir() else place.parent


def read(path: Path) -> Sidecar:
    """The sidecar at ``path``, an empty one if there is no file. Raises UserError for a file of another form."""
    if not is_file(path):
        return Sidecar()
    try:
        return parse(from_json(read_text(path, MAX_BYTES, " as the marks of a data set")))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown(path.name)} is not JSON ({error}); correct or remove it.") from error


def parse(values: object) -> Sidecar:
    """The sidecar of plain values, as JSON has them. Raises UserError that says what is wrong."""
    if not isinstance(values, dict) or values.get("version") != VERSION:
        raise UserError(f"{NAME} is not of version {VERSION}, the one that this pack reads; correct or remove it.")
    pictures, masks = values.get("pictures", {}), values.get("masks", False)
    unknown = values.keys() - {"version", "pictures", "masks"}
    if unknown:
        raise UserError(f"{NAME} has {shown(sorted(map(str, unknown))[0])!r}, which means nothing; remove it.")
    if not isinstance(pictures, dict) or not isinstance(masks, bool):
        raise UserError(f'{NAME} needs "pictures" as an object and "masks" as true or false; correct or remove it.')
    if len(pictures) > MOST_PICTURES:
        raise UserError(f"{NAME} names {len(pictures)} pictures; at most {MOST_PICTURES} are read.")
    return Sidecar({picture_name(name): mark_of(name, values) for name, values in pictures.items()}, masks)


def picture_name(name: object) -> str:
    """``name`` if it is a relative name of a file below the folder. Raises UserError otherwise."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    fine = parts and "/".join(parts) == name and ".." not in parts and not name.startswith("/")
    if not fine or len(name) > LONGEST_NAME or "\\" in name or "\0" in name or ":" in parts[0]:
        raise UserError(f"{shown(str(name))!r} is no name of a picture in the folder.")
    return name


def mark_of(name: str, values: object) -> Mark:
    """The mark of plain values. Raises UserError with the picture's name."""
    if not isinstance(values, dict) or values.keys() - KEYS:
        raise UserError(f'{NAME}: {shown(name)} needs {{"exclude": true}} or {{"repeat": 2}}.')
    exclude, repeat = values.get("exclude", False), values.get("repeat", 1)
    if not isinstance(exclude, bool):
        raise UserError(f"{NAME}: exclude of {shown(name)} is neither true nor false.")
    if isinstance(repeat, bool) or not isinstance(repeat, int) or not 1 <= repeat <= MOST_TIMES:
        raise UserError(f"{NAME}: repeat of {shown(name)} is {shown(str(repeat))}; it must be 1 to {MOST_TIMES}.")
    return Mark(exclude, repeat)


def sentences(times: Times, there: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(what the marks change, what is odd about them), in sentences; ``there`` are the names of all pictures."""
    out = [name for name, number in times if number == 0 and name in there]
    more = [f"{shown(name)} x {number}" for name, number in times if number > 1 and name in there]
    gone = [shown(name) for name, _ in times if name not in there]
    said = []
    if out:
        said.append(f"{NAME} leaves out {counted(len(out), 'image')}: {_some([shown(name) for name in out])}")
    if more:
        said.append(f"{NAME} shows {counted(len(more), 'image')} more often: {_some(more)}")
    odd = (f"{NAME} names {counted(len(gone), 'image that is', 'images that are')} not there: {_some(gone)}",)
    return tuple(said), odd if gone else ()


def _some(names: list[str], most: int = 10) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
