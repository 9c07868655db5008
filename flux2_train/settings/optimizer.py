"""How gradients become steps: the node Optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from .base import Settings, setting, settings
from .text import Arguments, Numbers, Rates

OTHER = "other"
# The modules whose classes ``other`` may name, and their packages. FLUX2_OPTIMIZERS of the environment adds others.
LIBRARIES = {
    "torch.optim": "torch", "transformers": "transformers", "transformers.optimization": "transformers",
    "bitsandbytes.optim": "bitsandbytes", "pytorch_optimizer": "pytorch_optimizer",
}  # fmt: skip
OWN = ("params", "lr", "weight_decay", "betas", "eps")  # arguments that have settings of their own


@settings
class OptimizerSettings(Settings):
    """Optimizer and learning rate schedule. No ``betas``, and ``eps`` 0, take the optimizer's own."""

    optimizer: Literal["adamw", "adamw8bit", "adafactor", "prodigy", "lion", "schedulefree", "other"] = setting(
        "adamw",
        "adamw needs nothing. adamw8bit saves memory (bitsandbytes, CUDA). prodigy finds the rate itself: set "
        "learning_rate to 1. lion wants a third to a tenth of adamw's rate. other is the class that 'other' names.",
    )
    schedule: Literal["constant", "linear", "cosine", "cosine with restarts", "polynomial", "rex"] = setting(
        "constant", "How the learning rate falls over the run. constant suits most; cosine and rex end calmer."
    )
    warmup: float = setting(
        0.0,
        "The learning rate rises over this part of all steps (0.05), or from 1 on this many steps (50). Useful with "
        "high rates and prodigy.",
        ge=0, le=1_000_000, step=0.01, round=False,
    )  # fmt: skip
    weight_decay: float = setting(
        0.01, "Pulls weights towards zero against overfitting. 0.01 is usual, AI Toolkit uses 0.0001.",
        ge=0, le=10, step=0.001, round=False,
    )  # fmt: skip
    max_grad_norm: float = setting(
        1.0, "Gradients longer than this are shortened to it, which tames outliers. 0 is off.",
        ge=0, le=1e6, step=0.1, round=False, advanced=True,
    )  # fmt: skip
    end: float = setting(
        0.0, "Where the schedule ends, as a part of the learning rate; constant has no end.",
        ge=0, le=1, step=0.01, advanced=True,
    )  # fmt: skip
    cycles: int = setting(
        1, "For cosine with restarts: how often the rate starts anew at its full height.", ge=1, le=1000, advanced=True
    )
    power: float = setting(
        2.0, "For polynomial: 1 falls in a straight line, larger falls early and ends flat.",
        ge=0.1, le=10, step=0.1, advanced=True,
    )  # fmt: skip
    betas: Numbers = setting(
        (),
        "Decay of the first and second moment, such as 0.9, 0.95. Empty takes the optimizer's own; adafactor has none.",
        advanced=True,
    )
    eps: float = setting(
        0.0, "Added to the divisor of each step. 0 takes the optimizer's own; lion and adafactor have none.",
        ge=0, le=1, step=1e-8, round=False, advanced=True,
    )  # fmt: skip
    block_rates: Rates = setting(
        (),
        "Learning rate factors by layer name (patterns with *), such as double_blocks.*=0.5, single_blocks.7.*=0. The "
        "first that fits counts.",
        advanced=True,
    )
    other: str = setting(
        "",
        "For the optimizer 'other': a class of torch.optim, transformers, bitsandbytes.optim or pytorch_optimizer, "
        "such as torch.optim.Muon or pytorch_optimizer.CAME.",
        advanced=True,
    )
    other_arguments: Arguments = setting(
        (), "For 'other': its further arguments, such as momentum=0.9, nesterov=true. Empty takes its own.",
        advanced=True,
    )  # fmt: skip

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if len(self.betas) not in (0, 2) or not all(0 <= beta < 1 for beta in self.betas):
            yield f"The betas are {self.betas}; two are needed (like 0.9, 0.99), each at least 0 and below 1."
        for name, without in (("betas", ("adafactor",)), ("eps", ("adafactor", "lion"))):
            if self.optimizer in without and getattr(self, name):
                yield f"{name} does nothing for {self.optimizer}; leave it at its default or choose another optimizer."
        if self.optimizer == OTHER and not self.other:
            yield "The optimizer is 'other', but 'other' names none; write a class such as torch.optim.Muon."
        own = [name for name, _ in self.other_arguments if name in OWN]
        if own:
            yield f"other_arguments has {own[0]}, which has a setting of its own; set it there."
        if self.optimizer == "schedulefree" and self.schedule != "constant":
            yield f"The schedule is {self.schedule!r}, but schedule-free AdamW has none; set it to 'constant'."
        if any(rate < 0 for _, rate in self.block_rates):
            yield "A block's learning rate factor is below 0; 0 keeps its adapters as they are."


@settings
class EmaSettings(Settings):
    """A running mean of the adapters' weights."""

    ema_decay: float = setting(
        0.0,
        "Keeps a running mean of the weights, which smooths the result: 0.99 over about a hundred steps. 0 is off.",
        ge=0, le=0.999999, step=0.001, round=False, advanced=True,
    )  # fmt: skip
    ema_warmup: int = setting(
        0, "Until this step the running mean just follows the weights; skips a wild start.",
        ge=0, le=1_000_000, advanced=True,
    )  # fmt: skip
    ema_export: bool = setting(True, "Saves the running mean as the LoRA; off saves the last weights.", advanced=True)
    ema_preview: bool = setting(
        True, "Measures validation and paints previews with the running mean; off with the last weights.", advanced=True
    )
