"""Training times ``t`` in (0, 1), where 1 is pure noise: how they are drawn, shifted, and how much each counts.

A time is drawn in two steps. A uniform number ``u`` in (0, 1), fp64, is stratified, biased and kept within limits; a
quantile function turns it into ``t``. A quantile function never falls, so these act on ``u`` and compose with each of
them. The weights (B,) say how much the loss of a sample counts, by its time ``t`` (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from scipy.special import betaincinv
from torch import Tensor

Quantile = Callable[[Tensor], Tensor]
GRID = 4097  # points at which the integral of a drawn density is inverted
TINY = 2.0**-53


def independent(count: int, generator: torch.Generator) -> Tensor:
    """(count,) independent draws."""
    return torch.rand(count, generator=generator, dtype=torch.float64).clamp(min=TINY)


def stratified(u: Tensor, first: int, strata: int, seed: int) -> Tensor:
    """Put the draws numbered ``first``, ``first`` + 1, ... into strata of equal width, each visited once per round.

    ``u`` (count,) places them inside their stratum. A round's order depends on ``seed`` and the round alone, so a run
    taken up in the middle visits the strata it would have visited.
    """
    places = [_order(strata, seed, draw // strata)[draw % strata] for draw in range(first, first + len(u))]
    return (torch.tensor(places, dtype=u.dtype) + u) / strata


def _order(strata: int, seed: int, number: int) -> list[int]:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
    return torch.randperm(strata, generator=generator).tolist()


def biased(u: Tensor, bias: str = "balanced") -> Tensor:
    """More draws at one end: ``1 - (1 - u)^3`` for high noise, ``u^3`` for low (ai-toolkit's content and style).

    With uniform times the means are 3/4 and 1/4.
    """
    if bias == "high noise":
        return 1 - (1 - u) ** 3
    return u**3 if bias == "low noise" else u


def within(u: Tensor, quantile: Quantile, least: float, most: float) -> Tensor:
    """Squeeze ``u`` so that ``quantile(u)`` stays in ``least``..``most``; what is left keeps its proportions."""
    if least <= 0 and most >= 1:
        return u
    low, high = preimage(quantile, least), preimage(quantile, most)
    return low + (high - low) * u


def preimage(quantile: Quantile, t: float) -> float:
    """The ``u`` at which the quantile function reaches ``t``, by bisection to the last bit."""
    low, high = 0.0, 1.0
    for _ in range(64):
        middle = (low + high) / 2
        if quantile(torch.tensor([middle], dtype=torch.float64)).item() < t:
            low = middle
        else:
            high = middle
    return high


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


def shift(t: Tensor, mu: float) -> Tensor:
    """Move times towards noise: ``t' = e^mu t / (1 + (e^mu - 1) t)`` (Esser et al. 2024, equation 23)."""
    factor = math.exp(mu)
    return factor * t / (1 + (factor - 1) * t)


def offset(t: Tensor, by: Tensor | float) -> Tensor:
    """Move times by ``by`` on the logit scale; above 0 towards noise (SimpleTuner's sampling offset of a data set)."""
    return torch.sigmoid(torch.logit(t) + by)


def constant_mu(factor: float) -> float:
    """mu of a constant shift: ``t' = s t / (1 + (s - 1) t)`` with ``s = e^mu``."""
    return math.log(factor)


def linear_mu(tokens: int) -> float:
    """mu by number of image tokens: 0.5 at 256, 1.15 at 4096 (Black Forest Labs' FLUX.1 sampling code)."""
    return 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)


def empirical_mu(tokens: int, steps: int) -> float:
    """mu as FLUX.2 is sampled with ``steps`` steps (Black Forest Labs' FLUX.2 code): fits at 10 and 200 steps.

    Above 4300 tokens the number of steps does not matter, and mu jumps.
    """
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190
    return slope * steps + at_200 - 200 * slope


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
