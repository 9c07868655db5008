"""The learning rate over a run, as a factor of the rate that the user set."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer

from ..settings.optimizer import OptimizerSettings

SHAPES: dict[str, Callable[[float, OptimizerSettings], float]] = {
    "constant": lambda p, c: 1.0,
    "linear": lambda p, c: 1 - p,
    "cosine": lambda p, c: (1 + math.cos(math.pi * p)) / 2,
    "cosine with restarts": lambda p, c: (1 + math.cos(math.pi * (c.cycles * p % 1.0))) / 2,
    "polynomial": lambda p, c: (1 - p) ** c.power,
    "rex": lambda p, c: (1 - p) / (1 - p / 2),  # Chen et al. 2022
}


def factor(step: int, total: int, config: OptimizerSettings) -> float:
    """The factor for optimizer step ``step`` (from 0) of ``total``: warm-up, then the schedule's shape down to ``end``.

    Warm-up rises by the same amount each step. Its first step is above 0, its last step has the full rate.
    """
    warmup = warmup_steps(total, config)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if config.schedule == "constant":
        return 1.0
    return config.end + (1 - config.end) * SHAPES[config.schedule](min(progress, 1.0), config)


def warmup_steps(total: int, config: OptimizerSettings) -> int:
    """The number of warm-up steps: ``warmup`` below 1 is a share of all steps, else a number of steps."""
    return round(config.warmup * total if config.warmup < 1 else config.warmup)


class Schedule:
    """Sets an optimizer's learning rates: its first rates times ``factor`` for the number of steps done.

    To resume, the number of steps done is enough.
    """

    def __init__(self, optimizer: Optimizer, total: int, config: OptimizerSettings):
        self.optimizer, self.total, self.config = optimizer, total, config
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.go_to(0)

    def go_to(self, done: int) -> None:
        """Set the rates for ``done`` optimizer steps. Call after loading an optimizer state, too."""
        self.done = done
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor(done, self.total, self.config)

    def step(self) -> None:
        """Call after every optimizer step."""
        self.go_to(self.done + 1)
