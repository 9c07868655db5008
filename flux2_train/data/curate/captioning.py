"""Chooses the pictures of a folder that get captions, and puts each caption into its template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError
from ...settings.dataset_folder import DatasetSettings
from .. import sidecar
from ..pairs import MayRead, anywhere
from . import edits, listed

MISSING, ALL = "only missing", "all"
PLACE = "..."  # in a template: where the caption goes


@dataclass(frozen=True)
class Target:
    """A picture that gets a caption. ``before`` is its caption now, ``etag`` the hash of that file (``edits``)."""

    path: Path
    before: str | None
    etag: str


def targets(settings: DatasetSettings, which: str, may_read: MayRead = anywhere) -> list[Target]:
    """The pictures of a folder without a caption, or all, in Dataset Folder's order; those that are left out are not.

    Raises UserError if the folder cannot be read.
    """
    folder = listed.open_folder(settings, may_read)
    found = []
    for path in folder.paths:
        mark = folder.marks.pictures.get(path.relative_to(folder.root).as_posix(), sidecar.Mark())
        before, etag = edits.read_caption(path)
        if not mark.exclude and (which == ALL or not (before or "").strip()):
            found.append(Target(path, before, etag))
    return found


def filled(template: str, caption: str) -> str:
    """The template with the caption in the place of ``...``. Raises UserError for a template without that place."""
    template = template.strip().replace("\u2026", PLACE) or PLACE
    if PLACE not in template:
        raise UserError(
            f"template is {template!r}; it needs {PLACE} where the caption goes, such as '[trigger] {PLACE}'."
        )
    return " ".join(template.replace(PLACE, caption).split())
