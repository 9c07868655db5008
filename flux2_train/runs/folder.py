"""A run's folder: which file lies where. No two runs share a folder. Described in docs/run-folder.md."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..atomic import sweep, write_text
from ..bounded import from_json, read_text, reason
from ..errors import UserError

MOST_BYTES = 1 << 20  # of run.json
ABOUT, LOCK = "run.json", ".lock"
ROOM = 4096  # bytes of run.json at least
CANNOT_LOCK = (NotImplementedError, OSError)
PATIENCE = 1.0  # seconds to wait for the lock: a process that only asks ``is_held`` takes it for a moment
RUNNING, FINISHED, STOPPED, FAILED, PAUSED = "running", "finished", "stopped", "failed", "paused"


def now() -> str:
    """The time in UTC, as run.json holds it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(frozen=True)
class RunFolder:
    """The files of one run below ``path``. The folder has the run's name, and so has the LoRA if that name is free."""

    path: Path

    @classmethod
    def create(cls, runs: Path, name: str, taken: Callable[[str], bool] = lambda name: False) -> RunFolder:
        """Make a folder ``name`` in ``runs``, or ``name_2``, ``name_3`` ... if that name exists or is ``taken``.

        The folder of a run that has ended before its first step, and left nothing to go on from, is used again. Two
        runs that begin at the same time get two folders. Raises UserError if no folder can be made there.
        """
        try:
            runs.mkdir(parents=True, exist_ok=True)
            return cls(runs / cls._make(runs, name, taken))
        except OSError as error:
            raise UserError(
                f"The run's folder cannot be made in {runs} ({error.strerror}); make that a folder that can be written."
            ) from error

    @staticmethod
    def _make(runs: Path, name: str, taken: Callable[[str], bool]) -> str:
        for number in itertools.count(1):
            chosen = name if number == 1 else f"{name}_{number}"
            if taken(chosen):
                continue
            try:
                (runs / chosen).mkdir()
            except FileExistsError:
                if not RunFolder(runs / chosen).given_up():
                    continue
            return chosen

    def given_up(self) -> bool:
        """Whether a run has left this folder before its first step. Of several callers only one is told so."""
        try:
            with FileLock(self.path / LOCK, timeout=0):
                about = self.about()
                left = (
                    about.get("status") in (RUNNING, STOPPED, FAILED) and not about.get("step") and "lora" not in about
                )
                if not left or any(self.checkpoints.glob("*")):
                    return False
                (self.path / ABOUT).unlink()  # without it, nobody else takes the folder for one that was left
                return True
        except (Timeout, OSError):
            return False

    @classmethod
    def last(cls, runs: Path, name: str) -> RunFolder | None:
        """The newest run of that name, ``None`` if there is none."""
        numbered = re.compile(rf"{re.escape(name)}(?:_(\d+))?")
        matches = {p: m for p in (runs.iterdir() if runs.is_dir() else ()) if (m := numbered.fullmatch(p.name))}
        of_name = [path for path in matches if cls(path).about().get("name") == name]
        newest = max(of_name, key=lambda path: int(matches[path][1] or 1), default=None)
        return cls(newest) if newest else None

    @classmethod
    def sweep_all(cls, runs: Path) -> None:
        """Remove what killed processes left half written in the folders of all runs."""
        for run in map(cls, runs.iterdir()):
            for folder in (run.path, run.checkpoints, run.previews, run.images, run.references):
                sweep(folder)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def job(self) -> Path:
        """What was asked for, as ``python -m flux2_train train`` reads it."""
        return self.path / "job.json"

    @property
    def dataset(self) -> Path:
        """Every image and caption that was trained on, with hashes."""
        return self.path / "dataset.json"

    @property
    def report(self) -> Path:
        """The run in figures, once it has ended."""
        return self.path / "report.json"

    @property
    def plan(self) -> Path:
        """How the run is laid out in memory, and the memory and time that the planner expects."""
        return self.path / "plan.txt"

    @property
    def log(self) -> Path:
        """What the run has said, line by line."""
        return self.path / "log.txt"

    @property
    def workflow(self) -> Path:
        """The workflow of ComfyUI that began the run, as ComfyUI itself saves one."""
        return self.path / "workflow.json"

    @property
    def prompt(self) -> Path:
        """What ComfyUI queued for the run."""
        return self.path / "prompt.json"

    @property
    def losses(self) -> Path:
        return self.path / "loss.csv"

    @property
    def plot(self) -> Path:
        return self.path / "loss.png"

    @property
    def previews(self) -> Path:
        """The folder of every picture that was painted."""
        return self.path / "previews"

    @property
    def contact_sheet(self) -> Path:
        """All previews over time."""
        return self.path / "previews.png"

    @property
    def references(self) -> Path:
        """The folder of reference images of previews, as the graph gave them."""
        return self.path / "references"

    @property
    def images(self) -> Path:
        """The folder of tables with every image's loss, one per measurement."""
        return self.path / "images"

    @property
    def image_table(self) -> Path:
        """What the losses of every image say about it."""
        return self.path / "images.csv"

    @property
    def image_sheet(self) -> Path:
        return self.path / "images.png"

    @property
    def tensorboard(self) -> Path:
        """The folder that TensorBoard reads."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints from which the run can be resumed."""
        return self.path / "checkpoints"

    @property
    def stop(self) -> Path:
        """A file that asks the run to end normally after the step in progress."""
        return self.path / "stop"

    @property
    def asked(self) -> Path:
        """The folder of what else is asked of the run, see ``steering``."""
        return self.path / "asked"

    @property
    def record(self) -> Path:
        """What the run has told while it trained, see ``record``."""
        return self.path / "record.jsonl"

    @contextmanager
    def held(self) -> Iterator[str]:
        """This process owns the run inside the block; the lock is freed however the process ends.

        Raises UserError if another process owns it. Yields what the user must not do where the file system cannot lock
        (some network file systems), else an empty text.
        """
        lock, unlocked = FileLock(self.path / LOCK, timeout=PATIENCE), ""
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(f"The run {self.name} is being trained right now; stop it first.") from error
        except CANNOT_LOCK as error:
            unlocked = (
                f"The file system of {self.path} cannot lock files ({reason(error)}): do not train this run in two "
                "programs at once, and stop it with Cancel, as the command 'stop' cannot tell that it is being trained."
            )
        try:
            self.stop.unlink(missing_ok=True)
            shutil.rmtree(self.asked, ignore_errors=True)
            yield unlocked
        finally:
            lock.release()

    def is_held(self) -> bool:
        """Whether a process trains the run right now."""
        if not self.path.is_dir():
            return False
        try:
            with FileLock(self.path / LOCK, timeout=0):
                return False
        except Timeout:
            return True
        except CANNOT_LOCK:  # nobody can hold it there
            return False

    def ask_to_stop(self) -> None:
        """Ask for the run to end normally after the step in progress. Raises UserError if no process trains it."""
        self.require_held()
        self.stop.touch()

    def require_held(self) -> None:
        """Raise UserError if no process trains the run."""
        if not self.is_held():
            raise UserError(f"No run {self.name} is being trained; its folder would be {self.path}.")

    def about(self) -> dict:
        """What ``note`` has written, empty if it cannot be read."""
        try:
            values = from_json(read_text(self.path / ABOUT, MOST_BYTES))
        except ValueError:
            return {}
        return values if isinstance(values, dict) else {}

    def note(self, **values) -> None:
        """Update the run's state in ``run.json``: name, status, step, total and so on.

        The file has room to spare, so that the state at the end can be written even if the disk is full: then it is
        changed in place. Raises OSError if that cannot be done either.
        """
        path, state = self.path / ABOUT, {**self.about(), **values}
        try:
            write_text(path, json.dumps(state, indent=2).ljust(ROOM) + "\n")
        except OSError:
            with path.open("rb+") as file:
                size = file.seek(0, 2)
                text = json.dumps({**state, "why": str(state.get("why", ""))[: ROOM // 8]}, indent=2).encode()
                if len(text) >= size:
                    raise
                file.seek(0)
                file.write(text.ljust(size - 1) + b"\n")
