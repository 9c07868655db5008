"""The validation loss: the same samples, the same noise, the same timesteps, every time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..data.samples import Sample
from ..flow.target import interpolate, mean_squared_error, velocity_target

TIMES = (0.2, 0.4, 0.6, 0.8)

Predict = Callable[[Tensor, Tensor, list[Sample]], Tensor]


def fixed_loss(predict: Predict, sample: Sample, seed: int) -> float:
    """Mean velocity error on ``sample`` at TIMES with noise from ``seed``.

    ``predict(x_t, t, samples)`` gives the velocity. A training loss is dominated by the luck of its timestep; this
    one is comparable between any two moments of a run.
    """
    generator = torch.Generator().manual_seed(seed)
    x0, losses = sample.latent.float(), []
    for time in TIMES:
        noise, t = torch.randn(x0.shape, generator=generator), torch.tensor([time])
        predicted = predict(interpolate(x0, noise, t), t, [sample]).cpu()
        losses.append(mean_squared_error(predicted, velocity_target(x0, noise)))
    return torch.cat(losses).mean().item()
