"""Training times ``t`` in (0, 1), fp32; 1 is pure noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def logit_normal(count: int, generator: torch.Generator, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """(count,) draws of sigmoid(N(mean, std)) (Esser et al. 2024, section 3.1)."""
    return torch.sigmoid(mean + std * torch.randn(count, generator=generator))


def shift(t: Tensor, mu: float) -> Tensor:
    """Move times towards noise: ``t' = e^mu t / (1 + (e^mu - 1) t)`` (Esser et al. 2024, equation 23)."""
    factor = math.exp(mu)
    return factor * t / (1 + (factor - 1) * t)


def linear_mu(tokens: int) -> float:
    """mu by number of image tokens: 0.5 at 256, 1.15 at 4096 (Black Forest Labs' FLUX.1 sampling code)."""
    return 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
