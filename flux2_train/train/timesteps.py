"""Draws the times of a batch as the user's settings say, and gives the weight of a loss at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..flow import times
from ..flow.times import Quantile, constant_mu, empirical_mu, linear_mu, offset, shift
from ..settings.timesteps import TimestepSettings

EDGE = 1e-5  # drawn times stay this far from 0 and 1


def draw(
    config: TimestepSettings,
    offsets: Sequence[float],
    tokens: int,
    first: int,
    seed: int,
    generator: torch.Generator,
) -> Tensor:
    """(B,) fp32 times, one for each of ``offsets``, which move a time on the logit scale.

    ``first`` is the number of times drawn before in the run. The shift depends on ``tokens``, the number of image
    tokens. ``seed`` sets the order of strata.
    """
    count = len(offsets)
    if config.distribution == "round robin":
        return torch.tensor([config.times[i % len(config.times)] for i in range(first, first + count)])
    u = times.independent(count, generator)
    if config.strata:
        u = times.stratified(u, first, config.strata, seed)
    by_sample = torch.tensor(offsets, dtype=u.dtype)
    t = torch.empty_like(u)
    for value in set(offsets):
        t[by_sample == value] = _time(config, u[by_sample == value], value, tokens)
    return t.float()


def _time(config: TimestepSettings, u: Tensor, by: float, tokens: int) -> Tensor:
    if config.listed:
        return times.choice(times.biased(u, config.bias), config.times)
    quantile = quantile_of(config, tokens, by)
    return quantile(times.within(u, quantile, config.min, config.max)).clamp(EDGE, 1 - EDGE)


def quantile_of(config: TimestepSettings, tokens: int, by: float = 0.0) -> Quantile:
    """The function from uniform ``u`` to ``t``: bias, distribution, offset ``by``, shift; without min and max."""
    distribution, mu = _distribution(config), mu_of(config, tokens)

    def quantile(u: Tensor) -> Tensor:
        t = distribution(times.biased(u, config.bias))
        return shift(offset(t, config.sigmoid_scale * by) if by else t, mu)

    return quantile


def _distribution(config: TimestepSettings) -> Quantile:
    match config.distribution:
        case "sigmoid":
            return partial(
                times.logit_normal, scale=config.sigmoid_scale, mean=config.sigmoid_mean, std=config.sigmoid_std
            )
        case "beta":
            return partial(times.beta, alpha=config.beta_alpha, beta=config.beta_beta)
        case "mode":
            return partial(times.mode, scale=config.mode_scale)
        case "curve":
            return partial(times.density, knots=config.values)
    return times.uniform


def mu_of(config: TimestepSettings, tokens: int) -> float:
    """The shift towards noise as mu; 0 is no shift."""
    if config.distribution == "weighted":  # its curve was measured with unshifted times
        return 0.0
    return {
        "none": 0.0,
        "constant": constant_mu(config.shift_factor),
        "linear": linear_mu(tokens),
        "empirical": empirical_mu(tokens, config.shift_steps),
    }[config.shift]


def weights(config: TimestepSettings, t: Tensor) -> Tensor | None:
    """(B,) the weight of each sample's loss at its time ``t``; None if all weights are 1."""
    if config.weighting == "table":
        return times.table(t, config.weights)
    name = "measured" if config.distribution == "weighted" else config.weighting
    return None if name == "none" else times.CURVES[name](t)
