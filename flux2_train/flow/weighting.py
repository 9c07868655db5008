"""How much each sample and each place in it counts in a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def place_weights(masks: Sequence[Tensor | None], weights: Sequence[float], like: Tensor) -> Tensor | None:
    """(B, 1, h, w) factors on an elementwise loss (B, C, h, w); None where everything counts 1.

    A mask (1, 1, h, w) has a mean of 1 over its image, so it moves a sample's loss to a place without making it
    smaller; a sample without a mask counts 1 everywhere. ``weights`` are the samples' own.
    """
    if all(mask is None for mask in masks) and all(weight == 1.0 for weight in weights):
        return None
    full = torch.ones((1, 1, *like.shape[-2:]), device=like.device, dtype=like.dtype)
    rows = [full * w if m is None else m.to(full) * w for m, w in zip(masks, weights, strict=True)]
    return torch.cat(rows)


def weighted(losses: Tensor, factors: Tensor | None) -> Tensor:
    """Elementwise losses (B, C, h, w) times ``place_weights``."""
    return losses if factors is None else losses * factors


def replaced(target: Tensor, other: Tensor, chosen: Sequence[bool]) -> Tensor:
    """``target`` (B, C, h, w) with the samples in ``chosen`` taken from ``other``."""
    pairs = zip(target.split(1), other.to(target.dtype).split(1), chosen, strict=True)
    return torch.cat([theirs if is_chosen else own for own, theirs, is_chosen in pairs])  # nothing goes to the device
