"""What another process tells of its run, read from the record in the run's folder as events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ... import events
from ...bounded import from_json
from ...events import Event
from ...settings.training import TrainingSettings
from ...train.history import History
from ..folder import RunFolder


@dataclass
class Followed:
    """A run of other processes, as far as their record tells it: what a listener reads of a trainer."""

    config: TrainingSettings
    total: int
    step: int = 0
    history: History = field(default_factory=History)


class Record:
    """Reads new lines of a run's record. Lines that were there before the run went on are left out."""

    def __init__(self, folder: RunFolder, followed: Followed, at: int = 0):
        self.folder, self.followed = folder, followed
        self.at, self.rest = at, b""
        self.lines = _lines(folder.record, at)

    def news(self) -> Iterator[Event]:
        """The events of the lines that have come since the last call, and ``Recorded`` with the lines themselves."""
        entries = [entry for line in self._new_lines() if isinstance(entry := _parsed(line), dict)]
        if not entries:
            return
        for entry in entries:
            yield from self._events(entry)
        first, self.lines = self.lines, self.lines + len(entries)
        yield events.Recorded(first, tuple(entries))

    def _new_lines(self) -> list[bytes]:
        try:
            with self.folder.record.open("rb") as file:
                file.seek(self.at)
                text = file.read()
        except OSError:
            return []
        self.at += len(text)
        *lines, self.rest = (self.rest + text).split(b"\n")
        return lines

    def _events(self, entry: dict) -> Iterator[Event]:
        kind, step, total = entry.get("kind"), entry.get("step", 0), entry.get("total", self.followed.total)
        self.followed.total = total
        match kind:
            case "resumed":
                self.followed.step, self.followed.history.losses = step, [0.0] * step  # so many steps are done
                yield events.Resumed(step, total, self.folder.checkpoints / "the last one")
            case "steps":
                yield from self._steps(entry)
            case "phase":
                yield events.Phase(entry["text"])
            case "plan":
                yield events.Planned(entry["text"])
            case "warning":
                yield events.Warned(entry["text"], *(tuple(entry.get(name, ())) for name in ("remedies", "pictures")))
            case "steered":
                yield events.Steered(step, entry["text"])
            case "validation":
                yield events.Validated(step, entry["loss"], entry["held_out"])
            case "preview":
                yield events.Previewed(step, ())
            case "saved":
                yield events.Saved(Path(entry["file"]), entry["stopped"])

    def _steps(self, entry: dict) -> Iterator[Event]:
        rows = range(len(entry["loss"]))
        curves = {name: entry.get(name) or [0.0 for _ in rows] for name in ("smoothed", "preservation", "seconds")}
        for row in rows:
            smoothed, preservation, seconds = (curves[name][row] or 0.0 for name in curves)
            self.followed.step = entry["first"] + row
            self.followed.history.losses.append(entry["loss"][row] or 0.0)
            self.followed.history.seconds.append(seconds)
            yield events.Stepped(
                self.followed.step, entry["total"], entry["loss"][row] or 0.0, smoothed, preservation, seconds
            )


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _lines(path: Path, end: int) -> int:
    if not end:
        return 0
    with path.open("rb") as file:
        return file.read(end).count(b"\n")


def _parsed(line: bytes) -> object:
    try:
        return from_json(line.decode())
    except ValueError:
        return None
