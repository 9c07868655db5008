"""When a checkpoint is due, writing it while the run goes on, and which ones stay."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..events import Checkpointed, Event, Warned
from ..settings.saving import CheckpointSettings
from . import checkpoints
from .checkpoints import Damaged, Snapshot


class Keeper:
    """The checkpoints of one run in ``folder``. ``take`` gives the run's state on the host, as it is now.

    One file is written at a time, by a thread; a checkpoint that becomes due meanwhile waits for it, and the run does
    not, except for a new best one. A file that cannot be written is told and the run goes on. ``epoch`` is the
    number of steps in one.
    """

    def __init__(self, folder: Path, config: CheckpointSettings, epoch: int, take: Callable[[], Snapshot]):
        self.folder, self.config, self.epoch, self.take = folder, config, max(1, epoch), take
        self.written = dict(_known(folder))  # the validation loss of each, infinite where it has none
        self.best, self.last = min(self.written.values(), default=math.inf), time.monotonic()
        self.waiting, self.begun = False, -1  # begun: the step of the last checkpoint
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future | None = None

    def after(self, step: int, validation: float | None = None) -> Iterator[Event]:
        """Call after every step. Yields what came of a write that has ended, and begins one if it is due."""
        improved = self.config.keep_best and validation is not None and validation < self.best
        if improved:
            self.best = validation
        self.waiting = self.waiting or (self.config.keep > 0 and (improved or self._is_due(step)))
        if self.writing and (self.writing.done() or improved):
            yield self._ended()
        if self.waiting and not self.writing:
            self._begin()

    def now(self, step: int) -> Iterator[Event]:
        """Write the state as it is now, unless it is written, and wait for it. Yields what came of all writing."""
        yield from self.settled()
        if self.config.keep > 0 and self.begun != step:
            self._begin()
            yield self._ended()

    def settled(self) -> Iterator[Event]:
        """Wait for what is being written, and yield what came of it."""
        if self.writing:
            yield self._ended()

    def close(self) -> None:
        """End the thread."""
        self.writer.shutdown()

    def best_path(self) -> Path | None:
        """The checkpoint with the lowest validation loss, ``None`` where none has one."""
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
        config, minutes = self.config, (time.monotonic() - self.last) / 60
        return (
            bool(config.every_steps and step % config.every_steps == 0)
            or bool(config.every_epochs and step % (config.every_epochs * self.epoch) == 0)
            or bool(config.every_minutes and minutes >= config.every_minutes)
        )

    def _begin(self) -> None:
        self.waiting, self.last = False, time.monotonic()
        snapshot = self.take()
        self.begun = snapshot.about.step
        self.writing = self.writer.submit(self._write, snapshot)

    def _write(self, snapshot: Snapshot) -> Event:
        step = snapshot.about.step
        try:
            path = snapshot.write(self.folder)
        except OSError as error:
            return Warned(
                f"The checkpoint of step {step} could not be written to {self.folder} ({error}); the run goes on. Make "
                "room or make the folder writable."
            )
        loss = snapshot.about.validation
        self.written[path] = math.inf if loss is None else loss
        self.prune(self.config.keep)
        return Checkpointed(step, path)

    def _ended(self) -> Event:
        writing, self.writing = self.writing, None
        return writing.result()


def _known(folder: Path) -> Iterator[tuple[Path, float]]:
    for path in checkpoints.paths(folder):
        loss = None
        with contextlib.suppress(Damaged):
            loss = checkpoints.read(path).about.validation
        yield path, math.inf if loss is None else loss
