"""Distributions of the training time ``t`` as quantile functions: uniform ``u`` in (0, 1) to ``t``, both fp64.

A quantile function never falls, so stratified draws, a bias and limits act on ``u`` and compose with each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from scipy.special import betaincinv
from torch import Tensor

Quantile = Callable[[Tensor], Tensor]
GRID = 4097  # points at which the integral of a drawn density is inverted


def uniform(u: Tensor) -> Tensor:
    """Every time as often as any other."""
    return u


def logit_normal(u: Tensor, scale: float = 1.0, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """``sigmoid(scale (mean + std n))``, n standard normal (Esser et al. 2024, section 3.1)."""
    return torch.sigmoid(scale * (mean + std * torch.special.ndtri(u)))


def beta(u: Tensor, alpha: float = 2.0, beta: float = 2.0) -> Tensor:
    """Beta(alpha, beta) by the inverse of the regularised incomplete beta function."""
    return torch.as_tensor(betaincinv(alpha, beta, u.numpy())).reshape(u.shape)


def mode(u: Tensor, scale: float = 1.29) -> Tensor:
    """Heavy in the middle, with tails that reach both ends (Esser et al. 2024, equation 20).

    ``f(v) = 1 - v - s (cos^2(pi v / 2) - 1 + v)`` falls for -1 <= s <= 2 / (pi - 2); the quantile is ``f(1 - u)``.
    """
    v = 1 - u
    return 1 - v - scale * (torch.cos(torch.pi / 2 * v) ** 2 - 1 + v)


def density(u: Tensor, knots: Sequence[float]) -> Tensor:
    """A density drawn through ``knots`` at equal distances over 0..1 by monotone cubics (Fritsch and Carlson 1980)."""
    cumulative, times = _cumulative(tuple(knots))
    return torch.as_tensor(np.interp(u.numpy(), cumulative, times)).reshape(u.shape)


@lru_cache(maxsize=8)
def _cumulative(knots: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    times = np.linspace(0, 1, GRID)
    integral = PchipInterpolator(np.linspace(0, 1, len(knots)), knots).antiderivative()(times)
    return integral / integral[-1], times


def choice(u: Tensor, values: Sequence[float]) -> Tensor:
    """One of ``values``, each as likely as any other."""
    ordered = torch.tensor(sorted(values), dtype=u.dtype)
    return ordered[(u * len(ordered)).long().clamp(max=len(ordered) - 1)]
