"""Every run of a folder of runs as a list shows it: read from its files, and remembered until they change."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from ...bounded import from_json, is_file, read_text
from ...names import shown
from ...settings.job import MAX_BYTES
from ..folder import ABOUT, FAILED, FINISHED, PAUSED, RUNNING, STOPPED, RunFolder
from ..writers.png import PREVIEW
from .curves import losses

KILLED, BROKEN = "killed", "broken"  # states that no run writes itself: its process was killed; its files say nothing
MOST_RUNS = 5000
MOST_FILES = 20_000  # of one run, whose sizes are added up
POINTS = 48  # of the small curve
LONGEST = 300  # characters of a text from a run's files
SETTINGS = ("recipe", "rank", "alpha", "learning_rate", "steps", "epochs", "batch", "preservation", "targets")


@dataclass(frozen=True)
class Row:
    """A run. ``state`` is what is true now: a run that says it is running, but that no process holds, was killed.

    ``began`` and ``ended`` are UTC as in run.json, ``changed`` the time of its last change in seconds since 1970,
    ``size`` the bytes of its folder, ``curve`` smoothed losses over the whole run, ``preview`` the newest picture's
    file name, ``checkpoints`` the steps from which it can go on.
    """

    name: str
    state: str
    changed: float
    why: str = ""
    began: str = ""
    ended: str = ""
    step: int = 0
    total: int = 0
    lora: str = ""
    size: int = 0
    curve: tuple[float, ...] = ()
    preview: str = ""
    checkpoints: tuple[int, ...] = ()
    settings: dict[str, Any] | None = None


class Listing:
    """The runs of one folder. A run is read again only after one of its files has changed."""

    def __init__(self, runs: Path):
        self.runs, self.known, self.lock = runs, {}, Lock()

    def rows(self) -> list[Row]:
        """Every run: those that are being trained first, then the newest first. At most MOST_RUNS."""
        with self.lock:
            rows = [self._row(path) for path in run_folders(self.runs)]
            names = {row.name for row in rows}
            self.known = {name: entry for name, entry in self.known.items() if name in names}
        return sorted(rows, key=lambda row: (row.state != RUNNING, -row.changed, row.name))[:MOST_RUNS]

    def _row(self, path: Path) -> Row:
        folder, stamp = RunFolder(path), _stamp(path)
        if path.name not in self.known or self.known[path.name][0] != stamp:
            self.known[path.name] = stamp, read_row(folder)
        row = self.known[path.name][1]
        # asking for the lock takes it for a moment, so only those are asked that say they are running
        return replace(row, state=KILLED) if row.state == RUNNING and not folder.is_held() else row


def run_folders(runs: Path) -> Iterator[Path]:
    """The folders in ``runs`` that hold a run, no links among them."""
    try:
        entries = sorted(os.scandir(runs), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False) and holds_run(Path(entry.path)):
            yield Path(entry.path)


def holds_run(path: Path) -> bool:
    """Whether a folder is a run's: it has its state or its job."""
    return is_file(path / ABOUT) or is_file(RunFolder(path).job)


def read_row(folder: RunFolder) -> Row:
    """A run as its files say. ``state`` is the one that the run wrote last."""
    about, changed = folder.about(), max(_mtime(folder.path / ABOUT), _mtime(folder.losses), _mtime(folder.path))
    state = about.get("status")
    steps = checkpoint_steps(folder)
    return Row(
        folder.name,
        state if state in (RUNNING, FINISHED, STOPPED, FAILED, PAUSED) else BROKEN,
        changed,
        *(_text(about.get(name)) for name in ("why", "began", "ended")),
        step=max(_number(about.get("step")), *steps, 0),
        total=_number(about.get("total")),
        lora=_text(about.get("lora")),
        size=_size(folder.path),
        curve=tuple(row[2] for row in losses(folder, POINTS)),
        preview=_newest_preview(folder.previews),
        checkpoints=tuple(steps),
        settings=settings_of(folder),
    )


def checkpoint_steps(folder: RunFolder) -> list[int]:
    """The steps of the checkpoints that a run has kept."""
    names = [name.removesuffix(".safetensors") for name in _names(folder.checkpoints) if name.endswith(".safetensors")]
    numbers = [name.removeprefix("step_") for name in names if name.startswith("step_")]
    return sorted(int(number) for number in numbers if number.isascii() and number.isdigit())


def job_values(folder: RunFolder) -> dict[str, Any]:
    """A run's job as plain values; empty if it cannot be read."""
    try:
        values = from_json(read_text(folder.job, MAX_BYTES))
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def settings_of(folder: RunFolder) -> dict[str, Any]:
    """The settings by which a person tells runs apart, by name."""
    job = job_values(folder)
    training, model, data = (_section(job.get(name)) for name in ("training", "model", "dataset"))
    found = {name: training[name] for name in SETTINGS if isinstance(training.get(name), str | int | float)}
    found |= {name: data[name] for name in ("folder", "resolution", "trigger") if data.get(name)}
    found |= {"flavour": model["flavour"]} if model.get("flavour") else {}
    return {name: _text(value) if isinstance(value, str) else value for name, value in found.items()
            if isinstance(value, str | int | float)}  # fmt: skip


def _section(value: Any) -> dict:
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, dict) else {}


def _text(value: Any) -> str:
    return shown(value, LONGEST) if isinstance(value, str) else ""


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12 else 0


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _newest_preview(previews: Path) -> str:
    found = [
        (int(match[1]), -int(match[2]), match[0]) for name in _names(previews) if (match := PREVIEW.fullmatch(name))
    ]
    return max(found)[2] if found else ""


def _mtime(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _stamp(path: Path) -> tuple[float, ...]:
    """What changes when a file of the run that ``read_row`` reads has changed."""
    folder = RunFolder(path)
    read = (path, path / ABOUT, folder.job, folder.losses, folder.checkpoints, folder.previews, folder.record)
    return tuple(map(_mtime, read))


def _size(path: Path) -> int:
    """The bytes of all regular files below a folder; links are not followed, and MOST_FILES are counted at most."""
    total, left, waiting = 0, MOST_FILES, [path]
    while waiting and left > 0:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            continue
        left -= len(entries)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            else:
                total += _bytes(entry)
    return total


def _bytes(entry: os.DirEntry) -> int:
    try:
        state = entry.stat(follow_symlinks=False)
    except OSError:
        return 0
    return state.st_size if stat.S_ISREG(state.st_mode) else 0
