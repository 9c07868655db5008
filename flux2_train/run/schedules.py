"""The learning rate over a run, as a factor of the one asked for."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

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
    """The factor of optimizer step ``step`` (from 0) of ``total``: warm-up, then the schedule's shape down to ``end``.

    Warm-up rises in equal parts from the first step, which already learns, to the full rate at its last.
    """
    warmup = warmup_steps(total, config)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if config.schedule == "constant":
        return 1.0
    return config.end + (1 - config.end) * SHAPES[config.schedule](min(progress, 1.0), config)


def warmup_steps(total: int, config: OptimizerSettings) -> int:
    """The steps of warm-up: a part of all steps below 1, else a number."""
    return round(config.warmup * total if config.warmup < 1 else config.warmup)


def scheduler(optimizer: Optimizer, total: int, config: OptimizerSettings) -> LambdaLR:
    """torch's scheduler on ``factor``; step it after every optimizer step."""
    return LambdaLR(optimizer, lambda step: factor(step, total, config))


def go_on(scheduler: LambdaLR, done: int) -> None:
    """Continue after ``done`` optimizer steps with the learning rates and the length that ``scheduler`` was made for.

    Call after the optimizer's state is loaded, which brings the rates of the run it was saved in.
    """
    scheduler.last_epoch, scheduler._step_count = done, done + 1
    for group, base, shape in zip(
        scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        group["initial_lr"], group["lr"] = base, base * shape(done)
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
