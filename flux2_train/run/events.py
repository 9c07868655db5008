"""What a run tells its listeners: nodes, terminal and tests all read these."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Started:
    """The run has a folder, whose name is the run's."""

    folder: Path


@dataclass(frozen=True)
class Resumed:
    """An interrupted run goes on after step ``step``, from the checkpoint at ``path``."""

    step: int
    total: int
    path: Path


@dataclass(frozen=True)
class Checkpointed:
    """The run as it was after step ``step`` is safely on disk at ``path``."""

    step: int
    path: Path


@dataclass(frozen=True)
class Phase:
    """A part of the run begins."""

    text: str


@dataclass(frozen=True)
class Warned:
    """Something the user should know that does not stop the run."""

    text: str


@dataclass(frozen=True)
class Stepped:
    """An optimizer step is done. ``step`` counts from 1; ``smoothed`` is a running mean of ``loss``."""

    step: int
    total: int
    loss: float
    smoothed: float
    preservation: float
    seconds: float


@dataclass(frozen=True)
class Validated:
    """The loss at fixed noise and timesteps before step ``step`` + 1."""

    step: int
    loss: float


@dataclass(frozen=True)
class Completed:
    """Step ``step`` and all that is looked at after it are done: what the trainer holds now can be gone on from."""

    step: int


@dataclass(frozen=True)
class Saved:
    """A LoRA was saved; ``stopped`` is true where the run ended before its time."""

    path: Path
    stopped: bool


Event = Started | Resumed | Checkpointed | Phase | Warned | Stepped | Validated | Completed | Saved
