"""Training times ``t`` in (0, 1), fp32; 1 is pure noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
