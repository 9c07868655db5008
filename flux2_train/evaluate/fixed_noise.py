"""The validation loss: the same samples, the same noise, the same timesteps, every time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..data.samples import Sample
from ..flow.target import interpolate, mean_squared_error, velocity_target

TIMES = (0.2, 0.4, 0.6, 0.8)
NOISY = TIMES[2:]  # where little of the picture is left, its caption tells most
OTHERS = 3  # captions that each image borrows

Predict = Callable[[Tensor, Tensor, list[Sample]], Tensor]


def fixed_losses(predict: Predict, sample: Sample, seed: int, times: Sequence[float] = TIMES) -> Tensor:
    """Velocity errors on ``sample`` at each of ``times``, which are of TIMES, with noise from ``seed``.

    ``predict(x_t, t, samples)`` gives the velocity. A training loss is dominated by the luck of its timestep; this
    one is comparable between any two moments of a run.
    """
    generator = torch.Generator().manual_seed(seed)
    x0, losses = sample.latent.float(), []
    for time in TIMES:
        noise, t = torch.randn(x0.shape, generator=generator), torch.tensor([time])  # the same whatever is asked for
        if time not in times:
            continue
        predicted = predict(interpolate(x0, noise, t), t, [sample]).cpu()
        losses.append(mean_squared_error(predicted, velocity_target(x0, noise)))
    return torch.cat(losses)


def fixed_loss(predict: Predict, sample: Sample, seed: int) -> float:
    """The mean of ``fixed_losses``."""
    return fixed_losses(predict, sample, seed).mean().item()


def lenders(captions: Sequence[str], own: str, place: int) -> list[int]:
    """Up to OTHERS indices of different captions, none of them ``own``, at even distances from ``place`` on."""
    first = {caption: index for index, caption in reversed(list(enumerate(captions)))}
    others = sorted(index for caption, index in first.items() if caption != own)
    count = min(OTHERS, len(others))
    return [others[(place + number * len(others) // count) % len(others)] for number in range(count)]
