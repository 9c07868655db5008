"""A run's folder: what lies where in it, and that no two runs share one. Described in docs/run-folder.md."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """The files of one run below ``path``; its name is the run's, and the LoRA's as long as nobody takes that."""

    path: Path

    @classmethod
    def create(cls, runs: Path, name: str, taken: Callable[[str], bool] = lambda name: False) -> RunFolder:
        """A new folder ``name`` in ``runs``, or ``name_2``, ``name_3`` ... where that is there already or ``taken``.

        Of two runs that ask at once each gets one of its own.
        """
        for number in itertools.count(1):
            chosen = name if number == 1 else f"{name}_{number}"
            if taken(chosen):
                continue
            try:
                (runs / chosen).mkdir(parents=True)
            except FileExistsError:
                continue
            return cls(runs / chosen)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def job(self) -> Path:
        """What was asked for, as ``python -m flux2_train train`` reads it."""
        return self.path / "job.json"

    @property
    def report(self) -> Path:
        """The run in figures, once it has ended."""
        return self.path / "report.json"

    @property
    def losses(self) -> Path:
        return self.path / "loss.csv"

    @property
    def plot(self) -> Path:
        return self.path / "loss.png"

    @property
    def checkpoints(self) -> Path:
        """The folder of everything a run can be taken up from."""
        return self.path / "checkpoints"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
