"""Decides when a checkpoint is due, writes it while the run goes on, and removes old ones."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..events import Checkpointed, Event, Warned
from ..settings.saving import BY_COST, CheckpointSettings
from ..settings.steering import SAVE
from . import checkpoints
from .checkpoints import DamagedCheckpoint, Snapshot

SHARE = 0.01  # of the time that checkpoints take at most, where the user set no minutes
SHORTEST = 60.0  # seconds between two of them, however little they take


Rank = Callable[[int, float | None], float]


def by_loss(step: int, validation: float | None) -> float:
    """The validation loss, infinite where it was not measured."""
    return math.inf if validation is None else validation


class CheckpointWriter:
    """The checkpoints of one run in ``folder``. ``take`` copies the run's state to the host, as it is now.

    A thread writes one file at a time. A checkpoint that becomes due meanwhile waits until the thread is free; the run
    waits only for a new best one. A file that cannot be written gives a warning, and the run goes on. ``epoch`` is the
    number of steps per epoch. ``rank(step, validation loss)`` is lowest for the best step, infinite for one that cannot
    be compared: by default it is that loss.
    """

    def __init__(
        self, folder: Path, config: CheckpointSettings, epoch: int, take: Callable[[], Snapshot], rank: Rank = by_loss
    ):
        self.folder, self.config, self.epoch, self.take = folder, config, max(1, epoch), take
        self.rank = rank
        self.written = {path: rank(checkpoints.step_of(path), loss) for path, loss in _losses(folder)}
        self.best, self.last_time = min(self.written.values(), default=math.inf), time.monotonic()
        self.waiting, self.last_step = False, -1  # whether one is due; the step of the last one
        self.cost = 0.0  # seconds that the last one took, copying and writing
        self.has_warned = False  # about the disk, and no file could be written since
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future | None = None

    def after(self, step: int, validation: float | None = None) -> Iterator[Event]:
        """Call after every step. Yields the result of a write that has ended, and begins a write if one is due."""
        rank = self.rank(step, validation)
        improved = self.config.keep_best and rank < self.best
        if improved:
            self.best = rank
        self.waiting = self.waiting or (self.config.keep > 0 and (improved or self._is_due(step)))
        if self.writing and (self.writing.done() or improved):
            yield from self._result()
        if self.waiting and not self.writing:
            self._begin()

    def now(self, step: int) -> Iterator[Event]:
        """Write the state as it is now, unless that is done, and wait for it. Yields the result of every write."""
        yield from self.settled()
        if self.config.keep > 0 and self.last_step != step:
            self._begin()
            yield from self._result()

    def settled(self) -> Iterator[Event]:
        """Wait for the file that is being written, and yield the result."""
        if self.writing:
            yield from self._result()

    def close(self) -> None:
        """End the thread."""
        self.thread.shutdown()

    def best_path(self) -> Path | None:
        """The checkpoint with the lowest rank, ``None`` if no checkpoint has one."""
        best = min(self.written, key=self.written.get, default=None)
        return best if best and self.written[best] < math.inf else None

    def prune(self, keep: int) -> None:
        """Remove all but the last ``keep`` and the best."""
        best = self.best_path() if self.config.keep_best else None
        for path in sorted(self.written)[:-keep]:
            if path != best:
                self.written.pop(path)
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def _is_due(self, step: int) -> bool:
        config, seconds = self.config, time.monotonic() - self.last_time
        often = max(self.cost / SHARE, SHORTEST) if config.every_minutes == BY_COST else config.every_minutes * 60
        return (
            bool(config.every_steps and step % config.every_steps == 0)
            or bool(config.every_epochs and step % (config.every_epochs * self.epoch) == 0)
            or bool(often and seconds >= often)
        )

    def _begin(self) -> None:
        self.waiting, self.last_time = False, time.monotonic()
        snapshot = self.take()
        self.last_step = snapshot.about.step
        self.writing = self.thread.submit(self._write, snapshot, self.last_time)

    def _write(self, snapshot: Snapshot, began: float) -> Event | None:
        """Write a file. Returns what there is to tell: a disk that is full or closed is told once."""
        step = snapshot.about.step
        try:
            path = snapshot.write(self.folder)
            self.has_warned = False
        except OSError as error:
            if self.has_warned:
                return None
            self.has_warned = True
            return Warned(
                f"The checkpoint of step {step} could not be written to {self.folder} ({error}); the run goes on. Make "
                "room or make the folder writable.",
                (SAVE,),
            )
        self.cost = time.monotonic() - began
        self.written[path] = self.rank(step, snapshot.about.validation)
        self.prune(self.config.keep)
        return Checkpointed(step, path)

    def _result(self) -> Iterator[Event]:
        writing, self.writing = self.writing, None
        event = writing.result()
        if event:
            yield event


def _losses(folder: Path) -> Iterator[tuple[Path, float | None]]:
    for path in checkpoints.paths(folder):
        loss = None
        with contextlib.suppress(DamagedCheckpoint):
            loss = checkpoints.read(path).about.validation
        yield path, loss
