"""Inputs that the model makes itself, step by step along a sampling schedule, and ReflexFlow's losses for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .times import shift

Velocity = Callable[[list[int], Tensor, Tensor], Tensor]  # (samples, their x (n, C, h, w), their times (n,)) to v


def path(t: float, offset: int, steps: int, mu: float) -> list[float]:
    """Times from ``offset`` sampling steps before ``t`` to ``t``, of a schedule of ``steps`` steps shifted by ``mu``.

    The schedule's time after p of its steps is ``shift(1 - p / steps, mu)``, read here at any real p, so that it ends
    at ``t`` exactly. It starts at pure noise if fewer than ``offset`` steps lie before ``t``; the first one is then
    shorter.
    """
    place = steps * (1 - _shifted(t, -mu))  # shifting by -mu undoes shifting by mu
    places = [p for back in range(offset, 0, -1) if (p := place - back) > 0]
    if len(places) < offset and place > 0:
        places.insert(0, 0.0)
    return [*(_shifted(1 - p / steps, mu) for p in places), t]


def _shifted(t: float, mu: float) -> float:
    return shift(torch.tensor(t, dtype=torch.float64), mu).item()


def rolled(
    x_t: Tensor, target: Tensor, t: Tensor, paths: Sequence[Sequence[float]], velocity: Velocity, heun: bool = False
) -> Tensor:
    """``x_t`` (B, C, h, w) with the samples replaced whose path has several times: sampled along it by ``velocity``.

    ``target`` (B, C, h, w) is noise minus image, so the start at time s is ``x_t + (s - t) target``. Steps are Euler's,
    or Heun's second-order ones. All samples that are on their way at a moment are one batch.
    """
    x = x_t.clone()
    for i, times in enumerate(paths):
        if len(times) > 1:
            x[i] += (times[0] - t[i]) * target[i]
    for left in range(max(map(len, paths)) - 1, 0, -1):  # steps left: all paths end together
        rows = [i for i, times in enumerate(paths) if len(times) > left]
        now, then = (_times(x, [paths[i][-left - k] for i in rows]) for k in (1, 0))
        length = (then - now).view(-1, 1, 1, 1)
        v = velocity(rows, x[rows], now)
        if heun:
            v = (v + velocity(rows, x[rows] + length * v, then)) / 2
        x[rows] = x[rows] + (length * v).to(x)
    return x


def _times(like: Tensor, times: list[float]) -> Tensor:
    return torch.tensor(times, dtype=torch.float32, device=like.device)


def drift_weights(clean: Tensor, drifted: Tensor, strength: float) -> Tensor:
    """ReflexFlow's frequency compensation: (B, C, h, w) factors ``1 + strength d / mean |d|`` of a loss, at least 0.

    ``d = clean - drifted`` are the predictions for the image with noise and for the model's own input, both without
    gradient. The paper divides by the sum of |d|, with which the factors of a whole image are 1 up to rounding.
    """
    difference = clean - drifted
    mean = difference.abs().flatten(1).mean(1).clamp(min=1e-12).view(-1, 1, 1, 1)
    return (1 + strength * difference / mean).clamp(min=0)


def drift_loss(predicted: Tensor, x: Tensor, x0: Tensor) -> Tensor:
    """ReflexFlow's anti-drift rectification: (B,) squared distance of the directions of ``predicted`` and ``x - x0``.

    Both are scaled to length 1: 2 (1 - cosine).
    """
    cosine = torch.nn.functional.cosine_similarity(predicted.flatten(1), (x - x0).flatten(1).to(predicted), dim=1)
    return 2 * (1 - cosine)


def probability_at(probability: float, step: int, start: int, ramp: int) -> float:
    """The probability in optimizer step ``step`` (from 1): 0 up to ``start``, then rising over ``ramp`` steps."""
    done = step - 1 - start
    return 0.0 if done < 0 else probability * min(1.0, (done + 1) / ramp if ramp else math.inf)
