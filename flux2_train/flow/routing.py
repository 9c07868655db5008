"""Which image tokens go through the routed blocks (TREAD, Krause et al. 2025, arXiv 2501.04765)."""

from __future__ import annotations

import torch
from torch import Tensor


def ratio_at(ratio: float, done: float, ramp: float = 0.0, until: float = 1.0) -> float:
    """The fraction of tokens kept when ``done`` (0..1) of a run's steps are over.

    It falls linearly from 1 to ``ratio`` while ``done`` goes from 0 to ``ramp``, and is 1 from ``until`` on.
    """
    if done >= until:
        return 1.0
    return ratio + (1 - ratio) * max(0.0, 1 - done / ramp) if ramp else ratio


def draw_kept(tokens: int, ratio: float, forced: Tensor, generator: torch.Generator) -> Tensor:
    """(B, K) long, ascending: the places of the image tokens that are kept of ``tokens`` per sample, drawn uniformly.

    ``forced`` (B, tokens) bool: tokens that are always kept. K is ``ratio * tokens`` rounded, at least 1, or the most
    forced tokens of a sample if those are more.
    """
    count = max(1, round(ratio * tokens), int(forced.sum(1).max()))
    scores = torch.rand(forced.shape, generator=generator)
    order = scores.masked_fill(forced, -1.0).argsort(dim=1, stable=True)
    return order[:, :count].sort(dim=1).values


def bright(mask: Tensor) -> Tensor:
    """(h * w,) bool: where a mask (1, 1, h, w) is above half of its brightest place."""
    return mask.flatten() > mask.max() / 2
