"""How the LoRA is written, and when a run's state is: the nodes Save Options and Checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from .base import Settings, setting, settings

NO_BEST, BESIDE, RESULT = "off", "beside", "result"
BY_COST = -1.0  # every_minutes: as often as the measured cost of a checkpoint allows


@settings
class SaveSettings(Settings):
    """How the LoRA is written."""

    format: Literal["comfyui", "diffusers", "kohya", "peft"] = setting(
        "comfyui",
        "'comfyui' loads in ComfyUI, diffusers and ai-toolkit; 'diffusers' is the same but refuses what diffusers "
        "cannot load, and writes DoRA its way, which OneTrainer reads too; 'kohya' is for musubi-tuner too; 'peft' is "
        "a folder for peft.",
    )
    precision: Literal["bf16", "fp16", "fp32"] = setting(
        "bf16", "How the numbers are stored. bf16 is enough; fp32 doubles the file and is for training on."
    )
    plain_rank: int = setting(
        0,
        "Save DoRA, LoHa or LoKr as the nearest plain LoRA of this rank, with its error stated. 0 saves them as they "
        "are.",
        ge=0, le=4096,
    )  # fmt: skip
    certificate: bool = setting(
        True,
        "Load the saved file back as ComfyUI would and compare what it adds to every layer with what the trained LoRA "
        "adds. Costs one small prediction.",
    )


@settings
class CheckpointSettings(Settings):
    """When a run's state is saved, how many of them are kept, and when the run stops early. The end is always saved."""

    every_steps: int = setting(0, "Save every that many steps. 0 counts no steps.", ge=0, le=1_000_000)
    every_minutes: float = setting(
        BY_COST,
        "Save every that many minutes, which is the most that a power cut can take. -1 saves as often as takes at most "
        "1 % of the time, but not more often than once a minute. 0 counts none.",
        ge=BY_COST, le=10_000, step=1,
    )  # fmt: skip
    every_epochs: int = setting(
        0, "Save every that many times the whole data set was seen. 0 counts no epochs.", ge=0, le=100_000
    )
    keep: int = setting(
        2,
        "How many of the last ones stay on disk; each is about three times the adapter in fp32. 0 saves none: an "
        "interrupted run then keeps its LoRA only.",
        ge=0, le=10_000,
    )  # fmt: skip
    keep_best: bool = setting(True, "Also keep the one with the lowest validation loss, whenever it was.")
    patience: int = setting(
        0,
        "Stop after that many validations without a lower loss and give the best LoRA. Needs a validation every some "
        "steps. 0 never stops early.",
        ge=0, le=100_000,
    )  # fmt: skip
    lora_every: int = setting(
        0,
        "Also save the LoRA as it is every that many steps, as NAME_step500 beside the last one, so that it can be "
        "sampled at once. 0 saves none on the way.",
        ge=0, le=1_000_000,
    )  # fmt: skip
    lora_keep: int = setting(
        4, "How many of these LoRA files stay; the oldest one goes first. 0 keeps all.", ge=0, le=10_000
    )

    best: Literal["off", "beside", "result"] = setting(
        NO_BEST,
        "The best step is what has learned most that belongs to the trigger, by validation loss and selectivity. "
        "'beside' also saves its LoRA, as NAME_best; 'result' gives it to the graph as well. Needs a validation every "
        "some steps.",
    )

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if BY_COST < self.every_minutes < 0:
            yield f"every_minutes is {self.every_minutes:g}; it must be -1, 0 or more."
        if self.patience and not (self.keep and self.keep_best):
            yield "patience gives the best checkpoint, but none is kept; set keep to 1 or more and keep_best on."
        if self.best != NO_BEST and not (self.keep and self.keep_best):
            yield f"best is '{self.best}', but the best is not kept; set keep to 1 or more and keep_best on."
