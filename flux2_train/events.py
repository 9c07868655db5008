"""What a run tells its listeners: nodes, terminal and tests all read these."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


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
class Planned:
    """How the run is laid out in memory and what it is expected to take, in lines."""

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
    """The loss at fixed noise and timesteps before step ``step`` + 1, of images kept out of training or of others."""

    step: int
    loss: float
    held_out: bool = False


@dataclass(frozen=True)
class Completed:
    """Step ``step`` and all that is looked at after it are done: what the trainer holds now can be gone on from."""

    step: int


@dataclass(frozen=True)
class Saved:
    """A LoRA was saved; ``stopped`` is true where the run ended before its time."""

    path: Path
    stopped: bool


@dataclass(frozen=True, eq=False)
class PreviewPicture:
    """A prompt as the base model and the adapters paint it: (H, W, 3) in 0..1 on the CPU.

    ``asked`` is all that was asked for, as JSON has it.
    """

    label: str
    base: Tensor
    painted: Tensor
    asked: dict


@dataclass(frozen=True, eq=False)
class Previewed:
    """Every prompt painted after ``step`` steps."""

    step: int
    pictures: tuple[PreviewPicture, ...]


@dataclass(frozen=True)
class ImageLoss:
    """How wrong the velocity is on one image: with its caption at each of ``validation.TIMES``, and with others'.

    ``others``: the name of each image that has lent its caption, and the mean error with that at ``validation.NOISY``.
    """

    path: Path
    held_out: bool
    with_caption: tuple[float, ...]
    others: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class ImagesMeasured:
    """The loss of every image alone after ``step`` steps, in the order of the data set."""

    step: int
    images: tuple[ImageLoss, ...]


Event = (
    Started
    | Resumed
    | Checkpointed
    | Phase
    | Planned
    | Warned
    | Stepped
    | Validated
    | Previewed
    | ImagesMeasured
    | Completed
    | Saved
)
