"""The uniform numbers ``u`` in (0, 1), fp64, that a quantile function turns into times."""

from __future__ import annotations

import torch
from torch import Tensor

from .quantiles import Quantile

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
