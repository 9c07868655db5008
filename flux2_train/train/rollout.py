"""Scheduled sampling in a run: which samples of a step are sampled by the model itself, and from where."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..flow import rollout
from ..flow.times import empirical_mu
from ..settings.rollout import RolloutSettings
from .step_input import StepInput


def draw_offsets(config: RolloutSettings, count: int, step: int, generator: torch.Generator) -> list[int]:
    """For each of ``count`` samples, how many sampling steps the model makes before; 0 for most.

    The generator is not used where the probability is 0.
    """
    probability = rollout.probability_at(config.probability, step, config.start_step, config.ramp_steps)
    if not probability:
        return [0] * count
    chosen = torch.rand(count, generator=generator) < probability
    offsets = torch.randint(1, config.max_offset + 1, (count,), generator=generator)
    return (offsets * chosen).tolist()


def paths_of(config: RolloutSettings, t: Tensor, offsets: list[int], tokens: int) -> list[list[float]]:
    """The times that each sample goes through on its way to ``t`` (B,); those that are not sampled have one."""
    steps = config.inference_steps
    mu = empirical_mu(tokens, steps) if config.schedule == "flux2" else 0.0
    return [
        rollout.path(time, offset, steps, mu) if offset else [time]
        for time, offset in zip(t.tolist(), offsets, strict=True)
    ]


def rolled_input(
    config: RolloutSettings, inputs: StepInput, offsets: list[int], predict: Callable[[StepInput], Tensor]
) -> StepInput:
    """The inputs, with those samples sampled by the model itself that have an offset above 0. No gradient is kept."""
    if not any(offsets):  # before the times are read, which would wait for a card in every step
        return inputs
    paths = paths_of(config, inputs.t, offsets, inputs.x_t[0, 0].numel())
    if max(map(len, paths)) == 1:
        return inputs

    def velocity(rows: list[int], x: Tensor, t: Tensor) -> Tensor:
        samples, guidance = [inputs.samples[i] for i in rows], [inputs.guidance[i] for i in rows]
        return predict(StepInput(samples, x, t, inputs.target[rows], guidance))

    with torch.no_grad():
        x = rollout.rolled(inputs.x_t, inputs.target, inputs.t, paths, velocity, config.sampler == "heun")
    return inputs.changed(x, on_path=inputs.x_t)
