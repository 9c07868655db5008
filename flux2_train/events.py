"""The events of a run, for its listeners: nodes, terminal, logs and tests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

LOWER_RATE = "lower_rate"  # a change of the learning rate to a lower one


@dataclass(frozen=True)
class Started:
    """The run has its folder. The folder's name is the name of the run."""

    folder: Path


@dataclass(frozen=True)
class Resumed:
    """An interrupted run continues after step ``step``, from the checkpoint at ``path``."""

    step: int
    total: int
    path: Path


@dataclass(frozen=True)
class Checkpointed:
    """The state of the run after step ``step`` is safely on disk at ``path``."""

    step: int
    path: Path


@dataclass(frozen=True)
class Phase:
    """A part of the run begins, such as loading or validating."""

    text: str


@dataclass(frozen=True)
class Planned:
    """How the run is laid out in memory and what it is expected to take, as lines of text."""

    text: str


@dataclass(frozen=True)
class Warned:
    """Something the user should know that does not stop the run.

    ``remedies`` are what could be asked of the run to mend it: requests of settings/steering.py, or LOWER_RATE.
    ``pictures`` are the files of the data set that the text is about.
    """

    text: str
    remedies: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()


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
    """The validation loss (at fixed noise and times) after ``step`` steps.

    ``held_out``: whether it is the loss of held-out images or of images that are trained on.
    """

    step: int
    loss: float
    held_out: bool = False


@dataclass(frozen=True)
class SelectivityMeasured:
    """How far the LoRA moves the velocity after ``step`` steps: the mean squared difference to the base model.

    ``taught`` is that with the trigger in the caption, ``leaked`` that without it.
    """

    step: int
    taught: float
    leaked: float

    @property
    def selectivity(self) -> float:
        """How many times as much changes with the trigger as without it; 1 where nothing changes."""
        if self.leaked:
            return self.taught / self.leaked
        return math.inf if self.taught else 1.0

    def __str__(self) -> str:
        """In words, for the node, the terminal and the log."""
        changes = f"change {self.taught:.3g} with the trigger, {self.leaked:.3g} without"
        return f"selectivity {self.selectivity:.3g} ({changes})"


@dataclass(frozen=True)
class BestSoFar:
    """After ``step`` steps the LoRA is the best that was measured, see ``evaluate.best``.

    ``saved`` is its file below the folder of LoRAs, once the run has ended and if it was asked for.
    """

    step: int
    saved: str = ""

    def __str__(self) -> str:
        """In words, for the node, the terminal and the log."""
        return f"the best step is {self.step}: {self.saved}" if self.saved else f"the best so far is step {self.step}"


@dataclass(frozen=True)
class Steered:
    """Somebody changed the run after step ``step``. ``text`` says to what."""

    step: int
    text: str


@dataclass(frozen=True)
class Completed:
    """Step ``step`` is done, and so are the previews and losses due after it: the trainer's state can be saved now."""

    step: int


@dataclass(frozen=True)
class Saved:
    """A LoRA was saved. ``stopped``: whether the run ended before its last step."""

    path: Path
    stopped: bool


@dataclass(frozen=True)
class Nearest:
    """The training picture, by its file's name, that a preview is nearest to.

    ``distance`` 1 is the usual distance among the training pictures; ``copied``: the preview is a copy of it.
    """

    name: str
    distance: float
    copied: bool = False


@dataclass(frozen=True, eq=False)
class PreviewPicture:
    """A prompt, painted by the base model and with the adapters: (H, W, 3) in 0..1 on the CPU.

    ``asked`` holds all settings of the picture, ready for JSON. ``number`` is the prompt's own in its run, from 1, also
    when other prompts are painted; 0 is its place among the pictures. ``nearest`` is the nearest training one.
    """

    label: str
    base: Tensor
    painted: Tensor
    asked: dict
    number: int = 0
    nearest: Nearest | None = None


@dataclass(frozen=True, eq=False)
class Previewed:
    """The pictures of all prompts after ``step`` steps."""

    step: int
    pictures: tuple[PreviewPicture, ...]


@dataclass(frozen=True)
class ImageLoss:
    """The velocity errors of one image: with its own caption at each of ``fixed_noise.TIMES``, and with other captions.

    ``others``: for each borrowed caption, its image's name and the mean error with it over ``fixed_noise.NOISY``.
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


@dataclass(frozen=True)
class Recorded:
    """Lines that were added to the run's record, ready for JSON. ``first``: how many there were before."""

    first: int
    lines: tuple[dict, ...]


Event = (
    Started
    | Resumed
    | Checkpointed
    | Phase
    | Planned
    | Warned
    | Stepped
    | Validated
    | SelectivityMeasured
    | BestSoFar
    | Previewed
    | ImagesMeasured
    | Steered
    | Completed
    | Saved
    | Recorded
)
