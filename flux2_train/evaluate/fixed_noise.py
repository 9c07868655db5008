"""The validation loss: always the same samples, noise and times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..data.samples import Sample
from ..flow.target import interpolate, mean_squared_error, velocity_target

TIMES = (0.2, 0.4, 0.6, 0.8)
NOISY = TIMES[2:]  # little of the image is visible at these, so the caption matters most
OTHERS = 3  # captions of other images with which each image is measured

Predict = Callable[[Tensor, Tensor, list[Sample]], Tensor]
See = Callable[[float, Tensor], None]


def fixed_losses(
    predict: Predict, sample: Sample, seed: int, times: Sequence[float] = TIMES, seen: See = lambda t, v: None
) -> Tensor:
    """Velocity errors on ``sample`` at each of ``times`` (a part of TIMES), with noise from ``seed``.

    ``predict(x_t, t, samples)`` gives the velocity. A training loss depends mostly on the time that was drawn; these
    losses can be compared between any two steps of a run. ``seen(t, velocity)`` gets every prediction, on the CPU.
    """
    losses, x0 = [], sample.latent.float()
    for t, noise, x_t in fixed_inputs(x0, seed, times):
        predicted = predict(x_t, t, [sample]).cpu()
        seen(t.item(), predicted)
        losses.append(mean_squared_error(predicted, velocity_target(x0, noise)))
    return torch.cat(losses)


def fixed_inputs(x0: Tensor, seed: int, times: Sequence[float] = TIMES) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(t (1,), noise, x_t) for each of ``times``, with noise from ``seed`` that is the same whatever ``times`` are."""
    generator = torch.Generator().manual_seed(seed)
    for time in TIMES:
        noise = torch.randn(x0.shape, generator=generator)  # for all TIMES, so that one does not depend on the others
        if time in times:
            t = torch.tensor([time])
            yield t, noise, interpolate(x0, noise, t)


def fixed_loss(predict: Predict, sample: Sample, seed: int, seen: See = lambda t, v: None) -> float:
    """The mean of ``fixed_losses``."""
    return fixed_losses(predict, sample, seed, seen=seen).mean().item()


def lenders(captions: Sequence[str], own: str, place: int) -> list[int]:
    """Up to OTHERS indices of different captions other than ``own``, at even distances beginning at ``place``."""
    first = {caption: index for index, caption in reversed(list(enumerate(captions)))}
    others = sorted(index for caption, index in first.items() if caption != own)
    count = min(OTHERS, len(others))
    return [others[(place + number * len(others) // count) % len(others)] for number in range(count)]
