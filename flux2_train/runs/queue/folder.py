"""A queue of jobs as a plain folder: one JSON file per job, which lies in the folder that says how far it is.

``waiting``, ``running``, ``done``, ``failed``, ``stopped`` and ``paused_jobs`` are the folders. A job is claimed by
renaming its file from ``waiting`` to ``running``; only one of several workers succeeds in that. Described in
docs/run-folder.md.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...atomic import has_ended, own_name, replacing, write_text
from ...bounded import from_json, read_text
from ...errors import UserError
from ...names import problem, shown
from ...settings.base import plain
from ...settings.job import MAX_BYTES, Job, Output
from ..folder import now

WAITING, RUNNING, DONE, FAILED, STOPPED, PAUSED = STATES = ("waiting", "running", "done", "failed", "stopped", "paused")
ENDED = (DONE, FAILED, STOPPED, PAUSED)
NO_MORE = "paused"  # while a file of that name is there, nobody takes another job
_FOLDERS = {PAUSED: "paused_jobs"}  # of a state whose name the mark above has
MOST_WAITING = 1000
MOST_ENDED = 100  # files of each state in which a job has ended
SILENT = 300.0  # seconds without a sign of life after which a claimed job waits again
STEP = 10  # between two numbers, so that few files are renamed when one is moved
_FILE = re.compile(r"(?P<number>\d{6,9}) (?P<title>.+?)(?:@(?P<owner>[0-9a-f]+-\d+-\d+))?\.json", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """A job in the queue. ``name`` is its file's name without owner and ending, unique in the queue.

    ``title`` says what differs, ``of`` is the run that it was made from, ``why`` the reason of a failure, ``owner`` who
    works at it.
    """

    name: str
    title: str
    state: str
    path: Path
    owner: str = ""

    @property
    def number(self) -> int:
        """Jobs are worked at in the order of their numbers."""
        return int(self.name.partition(" ")[0])

    def values(self) -> dict[str, Any]:
        """The content of the file: of, added, why, job. Raises UserError if it cannot be read."""
        try:
            found = from_json(read_text(self.path, MAX_BYTES + 4096, " as a queued job"))
        except ValueError as error:
            raise UserError(f"The queued job {shown(self.title)} cannot be read: {error}") from error
        if not isinstance(found, dict) or not isinstance(found.get("job"), dict):
            raise UserError(f"The queued job {shown(self.title)} holds no job.")
        return found

    def about(self) -> dict[str, str]:
        """``of``, ``added``, and ``why`` the job has ended before its last step, or what is wrong with its file."""
        try:
            values = self.values()
        except UserError as error:
            return {"of": "", "added": "", "why": str(error)}
        names = ("of", "added", "why") if self.state in (FAILED, STOPPED, PAUSED) else ("of", "added")
        return {"why": "", **{name: str(values.get(name, "")) for name in names}}

    def why(self) -> str:
        """See ``about``."""
        return self.about()["why"]


class Queue:
    """The jobs in a folder, which is made when the first one is added."""

    def __init__(self, folder: Path):
        self.folder = folder

    def entries(self, *states: str) -> list[Entry]:
        """The jobs in these states, or all of them; those of a state in the order in which they are worked at."""
        return [entry for state in states or STATES for entry in self._of(state)]

    def _place(self, state: str) -> Path:
        return self.folder / _FOLDERS.get(state, state)

    def _of(self, state: str) -> list[Entry]:
        try:
            names = os.listdir(self._place(state))
        except OSError:
            return []
        found = [(match, self._place(state) / name) for name in names if (match := _FILE.fullmatch(name))]
        entries = [
            Entry(f"{match['number']} {match['title']}", match["title"], state, path, match["owner"] or "")
            for match, path in found
        ]
        return sorted(entries, key=lambda entry: (entry.number, entry.title))

    def add(self, job: Job, title: str, of: str = "", goes_on: bool = False) -> str:
        """Put a job at the end and return its name. Its LoRA and its run go to ComfyUI's own folders.

        ``of`` is the run whose job it is; with ``goes_on`` that very run goes on.

        Raises UserError for a job that a file cannot hold whole, and for a full queue.
        """
        job.require_known()
        values = {"of": of, "goes_on": goes_on, "added": now(), "why": ""}
        values["job"] = {**plain(job), "output": plain(Output())}
        text = json.dumps(values, indent=1) + "\n"
        for state in STATES:
            self._place(state).mkdir(parents=True, exist_ok=True)
        while True:
            if len(self._of(WAITING)) >= MOST_WAITING:
                raise UserError(f"{MOST_WAITING} jobs wait already; remove some of them.")
            name = f"{self._next_number():06d} {_file_title(title)}"
            try:
                with replacing(self.folder / WAITING / f"{name}.json", new=True) as partial:
                    partial.write_text(text, encoding="utf-8")
                return name
            except FileExistsError:  # somebody else has added one meanwhile
                continue

    def find(self, name: str, *states: str) -> Entry:
        """The job of that name. Raises UserError if it is in none of these states."""
        for entry in self.entries(*states):
            if entry.name == name:
                return entry
        raise UserError(f"The job {shown(name)!r} is not {' or '.join(states or STATES)} any more.")

    def remove(self, name: str) -> None:
        """Remove a job that nobody works at."""
        self.find(name, WAITING, *ENDED).path.unlink(missing_ok=True)

    def again(self, name: str) -> None:
        """Let a job that has ended wait again, as the last one."""
        self._put(self.find(name, *ENDED), WAITING, self._next_number())

    def move(self, name: str, place: int) -> None:
        """Make a waiting job the one at that place; 0 is the next one."""
        moved = self.find(name, WAITING)
        others = [entry for entry in self._of(WAITING) if entry.name != name]
        place = max(0, min(place, len(others)))
        before = others[place - 1].number if place else 0
        after = others[place].number if place < len(others) else before + 2 * STEP
        if after - before > 1:
            self._put(moved, WAITING, (before + after) // 2)
            return
        first = self._next_number()  # no number is free between the two: all get new ones
        for number, entry in enumerate([*others[:place], moved, *others[place:]]):
            self._put(entry, WAITING, first + number * STEP)

    def _next_number(self) -> int:
        return max([entry.number for entry in self.entries()], default=0) + STEP

    def _put(self, entry: Entry, state: str, number: int) -> bool:
        """Rename a job's file into a state; False if somebody else has taken it. Nothing is ever overwritten."""
        path = self._place(state) / f"{number:06d} {entry.title}.json"
        if path == entry.path:
            return True
        path.parent.mkdir(exist_ok=True)  # an earlier version made fewer folders
        if path.exists():
            path = path.parent / f"{self._next_number():06d} {entry.title}.json"
        return self._rename(entry.path, path)

    def _rename(self, old: Path, new: Path) -> bool:
        """Rename a file of the queue; False if somebody else has taken it meanwhile."""
        try:
            os.rename(old, new)
        except FileNotFoundError:
            return False
        return True

    @property
    def paused(self) -> bool:
        return (self.folder / NO_MORE).exists()

    def pause(self, on: bool) -> None:
        """Take no more jobs, or go on taking them. A job that runs is not touched."""
        if on:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / NO_MORE).touch()
        else:
            (self.folder / NO_MORE).unlink(missing_ok=True)

    def claim(self, name: str = "") -> Claim | None:
        """Take the next waiting job, or the one of that name, for this thread alone; ``None`` if there is none."""
        self.release_abandoned()
        for entry in () if self.paused and not name else self._of(WAITING):
            if name and entry.name != name:
                continue
            path = self.folder / RUNNING / f"{entry.name}@{own_name()}.json"
            try:
                os.utime(entry.path)  # first: a file that was claimed with an old time would look abandoned
            except FileNotFoundError:
                continue
            if self._rename(entry.path, path):
                return Claim(self, Entry(entry.name, entry.title, RUNNING, path, own_name()))
        return None

    def release_abandoned(self) -> None:
        """Let jobs wait again whose workers have ended, or have given no sign of life for SILENT seconds."""
        running = self._of(RUNNING)
        now = self._clock() if running else 0.0
        for entry in running:
            try:
                silent = now - entry.path.stat().st_mtime > SILENT
            except OSError:
                continue
            if silent or has_ended(entry.owner):
                self._put(entry, WAITING, entry.number)

    def _clock(self) -> float:
        """The time of the folder's file system, by which other computers' files are dated too."""
        probe = self.folder / f".clock-{own_name()}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def prune(self) -> None:
        """Keep the newest MOST_ENDED jobs of those that have ended."""
        for state in ENDED:
            for entry in self._of(state)[:-MOST_ENDED]:
                entry.path.unlink(missing_ok=True)


class Claim:
    """A job that this worker alone trains. ``lost`` is true once somebody else has taken it for abandoned.

    ``run`` is the run that has a checkpoint of it, empty while there is none.
    """

    def __init__(self, queue: Queue, entry: Entry):
        self.queue, self.entry, self.lost, self.ended = queue, entry, False, False
        self.run = ""

    def beat(self) -> None:
        """Give a sign of life."""
        try:
            os.utime(self.entry.path)
        except OSError as error:
            self.lost = self.lost or isinstance(error, FileNotFoundError)

    def end(self, state: str, why: str = "") -> None:
        """Say how the job has ended: DONE, another of ENDED with the reason, or WAITING to give it back.

        A job that was paused or stopped goes on with its run once it waits again.
        """
        if self.lost or self.ended:
            return
        self.ended = True
        if why:
            goes_on = {"of": self.run, "goes_on": True} if self.run and state in (STOPPED, PAUSED) else {}
            self._note({"why": shown(why, 1000), **goes_on})
        self.queue._put(self.entry, state, self.entry.number)
        self.queue.prune()

    def _note(self, news: dict[str, Any]) -> None:
        try:
            values = self.entry.values()
        except UserError:  # nobody can read it: what is wrong is told where it is listed
            return
        write_text(self.entry.path, json.dumps({**values, **news}, indent=1) + "\n")


def _file_title(title: str) -> str:
    """The title as a part of a file's name."""
    plain_title = "".join("-" if each in '\\/:*?"<>|@' else each for each in shown(title, 100)).strip(". ")
    return plain_title if plain_title and not problem(plain_title) else "job"
