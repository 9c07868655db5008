"""Removes a run: its whole folder and nothing else, and never one that is being trained."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ...bounded import reason
from ...errors import UserError
from ...names import problem, shown
from ..folder import LOCK, RunFolder
from .listing import holds_run

LONGEST_NAME = 255  # bytes


def existing(runs: Path, name: str) -> RunFolder:
    """The run of that name directly in ``runs``. Raises UserError for a path, a link, and a folder that is no run's."""
    path = runs / name
    if problem(name, LONGEST_NAME) or name.startswith(".") or path.parent != runs or path.is_symlink():
        raise UserError(f"{shown(name)!r} is no run's name.")
    if not path.is_dir() or not holds_run(path):
        raise UserError(f"There is no run {shown(name)}.")
    return RunFolder(path)


def remove_run(runs: Path, name: str) -> None:
    """Remove the folder of a run. Its LoRA in models/loras stays. A link in the folder is removed, never followed.

    The run is held meanwhile, so that nobody can go on with it. Raises UserError if it is being trained, or if
    something in it cannot be removed; what is left then is still listed and can be removed later.
    """
    folder = existing(runs, name)
    try:
        with folder.held():
            for entry in sorted(os.scandir(folder.path), key=lambda entry: entry.name == "run.json"):
                if entry.name != LOCK:
                    _remove(entry)
        (folder.path / LOCK).unlink(missing_ok=True)
        folder.path.rmdir()
    except OSError as error:
        raise UserError(
            f"The run {shown(name)} could not be removed whole ({reason(error)}); close what has its files open, and "
            "delete it again."
        ) from error


def _remove(entry: os.DirEntry) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path)  # follows no links, and refuses to begin at one
    else:
        os.unlink(entry.path)
