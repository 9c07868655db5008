"""What the user asked for, typed and checked before any model is loaded."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field

from . import typed
from .adapters.targets import PRESETS
from .errors import UserError
from .memory.options import OFF, OFFLOADS, MemoryConfig
from .options import (
    AdapterConfig,
    CheckpointConfig,
    EmaConfig,
    GuardConfig,
    GuidanceConfig,
    LossConfig,
    OptimizerConfig,
    PreservationConfig,
    SaveConfig,
    TimestepConfig,
)
from .validation import HeldOutConfig

LOGS = ("tensorboard", "wandb")


@dataclass(frozen=True)
class TrainConfig:
    """One training run. ``epochs`` is used when ``steps`` is 0; ``alpha`` 0 means equal to ``rank``.

    ``preservation`` weighs the loss that keeps the class word's prediction as the base model's; 0 is off.
    A step takes ``accumulate`` batches of ``batch`` images in each process. ``differential_guidance`` 1 is off.
    ``guidance`` is the embedded guidance that dev is trained at. ``recipe`` only says where values came from.
    ``logs`` names the programs beside whose own writers the run is logged with.
    ``offload`` streams the base's weights from host memory: as much as it takes, nothing, or all of them.
    """

    name: str = "flux2_lora"
    rank: int = 16
    alpha: float = 0.0
    steps: int = 1000
    epochs: int = 0
    learning_rate: float = 1e-4
    batch: int = 1
    accumulate: int = 1
    seed: int = 0
    targets: str = "all"
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    checkpointing: bool = True
    offload: str = "auto"
    preservation: float = 0.0
    differential_guidance: float = 1.0
    guidance: float = 1.0
    validation_items: int = 4
    recipe: str = "none"
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    guide: GuidanceConfig = field(default_factory=GuidanceConfig)
    preserve: PreservationConfig = field(default_factory=PreservationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    logs: tuple[str, ...] = ()
    save: SaveConfig = field(default_factory=SaveConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)

    def __post_init__(self):
        for problem in self._problems():
            raise UserError(problem)

    @property
    def scale_alpha(self) -> float:
        """The alpha in force."""
        return self.alpha or float(self.rank)

    def _problems(self):
        if not is_file_name(self.name):
            yield f"The name {self.name!r} cannot be a file name; use letters, digits, spaces, '-', '_' or '.'."
        at_least = {"rank": 1, "batch": 1, "accumulate": 1, "steps": 0, "epochs": 0, "validation_items": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                yield f"{name} is {getattr(self, name)}; it must be at least {least}."
        if not self.steps and not self.epochs:
            yield "steps and epochs are both 0; set one of them."
        if not 0 < self.learning_rate <= 1:
            yield f"learning rate is {self.learning_rate}; it must lie between 0 and 1 (1e-4 is a good value)."
        unknown = [name for name in self.logs if name not in LOGS]
        if unknown:
            yield f"logs holds {unknown[0]!r}; there are {', '.join(LOGS)}, beside the CSV that is always written."
        if self.targets not in PRESETS:
            yield f"targets is {self.targets!r}; choose one of {', '.join(PRESETS)}."
        if self.preservation < 0 or self.differential_guidance <= 0 or self.alpha < 0:
            yield "preservation and alpha must not be negative, differential guidance must be above 0."
        if self.offload not in OFFLOADS:
            yield f"offload is {self.offload!r}; choose one of {', '.join(OFFLOADS)}."
        if self.offload == OFF and self.memory.streams:
            yield "offload is 'off', but Memory says how much to stream; set offload to 'auto' or Memory's amount to 0."
        if 0 < self.guide.most < self.guidance:
            yield f"guidance is drawn from {self.guidance:g} to {self.guide.most:g}; the second must be the larger."

    def to_json(self) -> str:
        """The configuration as JSON, for the run folder and the LoRA's metadata."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Inverse of ``to_json``. Raises UserError for settings that do not exist and values of another type."""
        return typed.read(cls, json.loads(text), "training")


def is_file_name(name: str) -> bool:
    """Whether a name can be a file's on every system, in the folder where it is put."""
    return bool(re.fullmatch(r"[^\\/:*?\"<>|\x00-\x1f]+", name)) and name.strip(". ") != ""
