"""The validation loss: always the same samples, noise and times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..data.samples import Sample
from ..flow.target import interpolate, mean_squared_error, velocity_target

TIMES = (0.2, 0.4, 0.6, 0.8)
NOISY = TIMES[2:]  # little of the image is visible at these, so the caption matters most
OTHERS = 3  # captions of other images with which each image is measured

Predict = Callable[[Tensor, Tensor, list[Sample]], Tensor]


def fixed_losses(predict: Predict, sample: Sample, seed: int, times: Sequence[float] = TIMES) -> Tensor:
    """Velocity errors on ``sample`` at each of ``times`` (a part of TIMES), with noise from ``seed``.

    ``predict(x_t, t, samples)`` gives the velocity. A training loss depends mostly on the time that was drawn; these
    losses can be compared between any two steps of a run.
    """
    generator = torch.Generator().manual_seed(seed)
    x0, losses = sample.latent.float(), []
    for time in TIMES:
        noise, t = (
            torch.randn(x0.shape, generator=generator),
            torch.tensor([time]),
        )  # drawn for all TIMES: the noise of one does not depend on ``times``
        if time not in times:
            continue
        predicted = predict(interpolate(x0, noise, t), t, [sample]).cpu()
        losses.append(mean_squared_error(predicted, velocity_target(x0, noise)))
    return torch.cat(losses)


def fixed_loss(predict: Predict, sample: Sample, seed: int) -> float:
    """The mean of ``fixed_losses``."""
    return fixed_losses(predict, sample, seed).mean().item()


def lenders(captions: Sequence[str], own: str, place: int) -> list[int]:
    """Up to OTHERS indices of different captions other than ``own``, at even distances beginning at ``place``."""
    first = {caption: index for index, caption in reversed(list(enumerate(captions)))}
    others = sorted(index for caption, index in first.items() if caption != own)
    count = min(OTHERS, len(others))
    return [others[(place + number * len(others) // count) % len(others)] for number in range(count)]
