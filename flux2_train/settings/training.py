"""One training run: the node LoRA Trainer, and as sections the nodes that are wired into it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import field, replace
from typing import Literal

from ..names import problem, shown
from .adapter import AdapterSettings
from .base import RARE, Settings, plain, setting, settings
from .memory import AUTO, OFF, ON, MemorySettings, Offload
from .objective import GuardSettings, GuidanceSettings, LossSettings, PreservationSettings
from .optimizer import EmaSettings, OptimizerSettings
from .previews import ValidationLossSettings
from .rollout import RolloutSettings
from .routing import RoutingSettings
from .saving import CheckpointSettings, SaveSettings
from .slider import OFF as NO_SLIDER
from .slider import SliderSettings
from .timesteps import TimestepSettings

TARGETS = ("all", "attention", "mlp", "tiny")
RECIPES = ("none", "style", "character", "object", "edit", "ai-toolkit", "simpletuner", "musubi")
NO_RECIPE = RECIPES[0]
LOGS: dict[str, tuple[str, ...]] = {
    "csv": (), "csv and TensorBoard": ("tensorboard",), "csv and Weights & Biases": ("wandb",),
    "csv, TensorBoard and Weights & Biases": ("tensorboard", "wandb"),
}  # fmt: skip
CSV = next(iter(LOGS))
COMFYUI, FASTEST = "comfyui", "fastest"  # attention kernels
SPEEDS = EXACT, CERTIFIED, FAST = ("exact", "certified", "fast")
LEAST_RATE = 1e-7  # a lower learning rate moves no weight
OPTIONAL = {"optional": True}


@settings
class TrainingSettings(Settings):
    """One training run. ``recipe`` only says where values came from; ``epochs`` counts where ``steps`` is 0.

    Without Validation Loss wired in, the loss at fixed noise is measured at the start and at the end.
    """

    name: str = setting(
        "flux2_lora", "File name of the LoRA. A number is added if that name is taken; nothing is overwritten."
    )
    steps: int = setting(
        1000, "How many optimizer steps. 500 to 2000 suit most subjects. 0 counts epochs instead.", ge=0, le=1_000_000
    )
    rank: int = setting(
        16,
        "Capacity of the LoRA: 8 to 16 for a style or a person, 32 and more for many things. File size and memory grow "
        "with it.",
        ge=1, le=1024,
    )  # fmt: skip
    learning_rate: float = setting(
        1e-4, "How far each step goes. 1e-4 is good for most; halve it if pictures burn out. On nano use about 1e-3.",
        ge=0, le=1, step=1e-6, round=False,
    )  # fmt: skip
    targets: Literal[TARGETS] = setting(
        "all",
        "Which layers learn. 'all' is best; 'attention' and 'mlp' leave out layers of the double blocks, 'tiny' trains "
        "qkv only and makes the smallest file.",
        advanced=True,
    )
    seed: int = setting(
        0,
        "Fixes the start, the order and the noise: the same seed gives the same LoRA, on CUDA up to rounding.",
        ge=0, le=2**63 - 1, control="fixed",
    )  # fmt: skip
    recipe: Literal[RECIPES] = setting(
        NO_RECIPE,
        "Fills in the values for a purpose, or as another trainer documents them: this node's, and those of Timesteps "
        "and Optimizer nodes wired in. Change any of them afterwards.",
        **OPTIONAL,
    )
    preservation: float = setting(
        0.0,
        "Differential output preservation: keeps what the class word means while the trigger is learned. 0 is off, 1 "
        "is strong. Needs trigger and class word on Dataset Folder; a step takes 2.3 times as long and no more memory "
        "worth mentioning.",
        ge=0, le=10, step=0.1, **OPTIONAL,
    )  # fmt: skip
    differential_guidance: float = setting(
        1.0,
        "Pushes past the target by this factor. 1 is off, 3 is usual. It multiplies mse's gradient: clipping sets in "
        "earlier, and preservation weighs that much less; raise it alike.",
        ge=0.1, le=10, step=0.1, **OPTIONAL,
    )  # fmt: skip
    alpha: float = setting(
        0.0, "The LoRA's scale is alpha / rank. 0 means equal to rank, scale 1, and is a good value.",
        ge=0, le=1024, step=1, **RARE,
    )  # fmt: skip
    epochs: int = setting(
        10, "How often the whole data set is seen; counts only when steps is 0.", ge=0, le=100_000, **RARE
    )
    batch: int = setting(
        1, "Images per step. More is steadier and needs more memory; 1 is right for small sets.", ge=1, le=256, **RARE
    )
    accumulate: int = setting(
        1,
        "Batches per step: the effect of a batch that many times as large in the memory of one, at that many times the "
        "time per step.",
        ge=1, le=1024, **RARE,
    )  # fmt: skip
    offload: Offload = setting(
        AUTO,
        "Keeps weights of the base in host memory and fetches them when they are used: 'auto' as many as it takes to "
        "fit, 'all' for the least memory, 'off' none. Changes speed, never the result.",
        **OPTIONAL,
    )
    checkpointing: bool = setting(
        True,
        "Where memory is short, blocks are recomputed instead of keeping their activations: far less memory, about a "
        "third more time. Off keeps all activations, and a run that then does not fit is refused.",
        **RARE,
    )
    validation_items: int = setting(
        4,
        "On how many images the loss is measured at fixed noise before and after training, which tells whether it "
        "fell. 0 turns it off.",
        ge=0, le=1000, **RARE,
    )  # fmt: skip
    logs: Literal[tuple(LOGS)] = setting(
        CSV,
        "Where losses and previews are logged beside loss.csv: TensorBoard (in the run's folder) and Weights & Biases, "
        "whose packages must be installed.",
        **RARE,
    )
    processes: int = setting(
        1,
        "Train in this many processes at once, one per card. Each takes 'batch' images, so a step has that many times "
        "as many, and each loads the model from its files. 0 is one per CUDA card. In a terminal, accelerate launch "
        "says how many.",
        ge=0, le=64, **RARE,
    )  # fmt: skip
    compile: Literal["off", "auto", "on"] = setting(
        OFF,
        "'on' runs the transformer's blocks through torch.compile, which fuses what lies between the matrix products. "
        "Compiling takes a minute or more at the start; results are equal up to rounding. Where no compiler works, the "
        "run says so and goes on as with 'off'. 'auto' times some steps without and with it, if the run is long enough "
        "to gain from it, and stays with the faster way.",
        **RARE,
    )  # fmt: skip
    attention: Literal["comfyui", "fastest"] = setting(
        COMFYUI,
        "Which attention kernel steps use. 'comfyui' takes the first that fits, in ComfyUI's order. 'fastest' times "
        "those that have a gradient, once for each image size, and uses the fastest; resumed runs use the same. "
        "Results are equal up to rounding.",
        **RARE,
    )  # fmt: skip
    speed: Literal[SPEEDS] = setting(
        EXACT,
        "'fast' multiplies by the base model's weights in 8 bits, wherever that can be done; the LoRA's own products "
        "stay exact. 'certified' first compares both on your model and first images, takes the layers in which 8 bits "
        "are close to exact, and none if that is not faster here; the run says how many, how close and how fast.",
        **RARE,
    )  # fmt: skip
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    timesteps: TimestepSettings = field(default_factory=TimestepSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    guidance: GuidanceSettings = field(default_factory=GuidanceSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    preservation_options: PreservationSettings = field(default_factory=PreservationSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    routing: RoutingSettings = field(default_factory=RoutingSettings)
    slider: SliderSettings = field(default_factory=SliderSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    ema: EmaSettings = field(default_factory=EmaSettings)
    validation_loss: ValidationLossSettings = field(default_factory=lambda: ValidationLossSettings(every=0))
    save: SaveSettings = field(default_factory=SaveSettings)
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)

    @property
    def log_writers(self) -> tuple[str, ...]:
        """The programs that the run is logged to beside loss.csv."""
        return LOGS[self.logs]

    @property
    def scale_alpha(self) -> float:
        """The alpha that is used: ``alpha``, or the rank if that is 0."""
        return self.alpha or float(self.rank)

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        wrong = problem(self.name)
        if wrong:
            yield (
                f"The name {shown(self.name)!r} cannot be a file name, because {wrong}; use letters, digits, spaces, "
                "'-', '_' or '.'."
            )
        if not self.steps and not self.epochs:
            yield "steps and epochs are both 0: nothing would be trained. Set one of them."
        if self.learning_rate < LEAST_RATE:
            yield f"learning_rate is {self.learning_rate:g}: nothing would be learned. 1e-4 suits most, 1e-3 nano."
        if self.offload == OFF and self.memory.streams:
            yield "offload is 'off', but Memory says how much to stream; set offload to 'auto' or Memory's amount to 0."
        if self.compile == ON and self.attention == FASTEST:
            yield "compile is 'on', and torch chooses the attention of compiled blocks; set attention to 'comfyui'."
        if self.compile == ON and self.memory.cards != "1":
            yield "compile is 'on', and compiled blocks run on one card; set compile to 'off' or cards of Memory to 1."
        if self.slider.slider != NO_SLIDER:
            yield from (
                f"A slider cannot be learned with {what}; turn one of them off." for what in self._against_slider()
            )

    def _against_slider(self) -> Iterator[str]:
        """What is on and needs the target of an image and its caption, which a slider has not."""
        others = {
            "contrastive guidance": self.guidance.contrastive_guidance != 1, "true CFG": self.guidance.true_cfg != 1,
            "differential guidance": self.differential_guidance != 1,
            "scheduled sampling": self.rollout.probability > 0,
            "outside_mask": self.preservation_options.outside_mask > 0,
            "'together' of Preservation": bool(self.preservation) and self.preservation_options.together,
        }  # fmt: skip
        yield from (name for name, is_on in others.items() if is_on)

    @property
    def public(self) -> TrainingSettings:
        """The settings as they may leave this computer: of the LoRA to start from its bare name, not its path."""
        name = re.split(r"[\\/]", self.adapter.start_from)[-1]
        return replace(self, adapter=replace(self.adapter, start_from=name))

    def to_json(self) -> str:
        """The settings as JSON, for the LoRA's metadata, which people publish."""
        return json.dumps(plain(self.public))
