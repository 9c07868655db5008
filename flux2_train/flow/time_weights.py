"""How much the loss of a sample counts, by its time ``t`` (B,): weights (B,)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

# ai-toolkit's curve "weighted", measured on flex.1-alpha (mean 1): (t, weight)
MEASURED = (
    (0.001, 0.447), (0.025, 0.493), (0.05, 0.582), (0.1, 0.716), (0.15, 0.729), (0.2, 0.716), (0.25, 0.715),
    (0.3, 0.731), (0.4, 0.805), (0.5, 0.925), (0.6, 1.083), (0.7, 1.264), (0.75, 1.355), (0.8, 1.441), (0.85, 1.507),
    (0.875, 1.522), (0.9, 1.507), (0.95, 1.375), (1.0, 0.906),
)  # fmt: skip


def none(t: Tensor) -> Tensor:
    """Every time counts the same."""
    return torch.ones_like(t)


def sigma_sqrt(t: Tensor) -> Tensor:
    """``t^-2``: undoes that an error in x0 is ``t`` times the velocity's (Esser et al. 2024). Huge for small t."""
    return t**-2


def cosmap(t: Tensor) -> Tensor:
    """``2 / (pi (1 - 2 t + 2 t^2))`` (Esser et al. 2024): most in the middle, mean 1."""
    return 2 / (math.pi * (1 - 2 * t + 2 * t**2))


def bell(t: Tensor) -> Tensor:
    """``exp(-2 (t - 1/2)^2)`` lowered to 0 at both ends and scaled to mean 1 (ai-toolkit's bell)."""
    ends = math.exp(-0.5)
    mean = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - ends
    return (torch.exp(-2 * (t - 0.5) ** 2) - ends) / mean


def measured(t: Tensor) -> Tensor:
    """ai-toolkit's measured curve through 19 of its 1000 points by monotone cubics.

    Off by 0.050 at most (at t = 0.987) and by 0.0022 in the mean; its own mean is 0.999 instead of 1.
    """
    return _interpolated(_measured(), t)


@cache
def _measured() -> PchipInterpolator:
    return PchipInterpolator(*np.array(MEASURED).T)


def table(t: Tensor, weights: Sequence[float]) -> Tensor:
    """The user's weights at equal distances over t = 0..1, straight lines between them."""
    return _interpolated(lambda at: np.interp(at, np.linspace(0, 1, len(weights)), weights), t)


def _interpolated(curve: Callable, t: Tensor) -> Tensor:
    return torch.as_tensor(curve(t.double().cpu().numpy()), device=t.device).to(t.dtype)


CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": none, "sigma_sqrt": sigma_sqrt, "cosmap": cosmap, "bell": bell, "measured": measured,
}  # fmt: skip
