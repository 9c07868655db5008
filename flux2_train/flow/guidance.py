"""Classifier-free guidance in training: in the target (contrastive loss), in the prediction, and dev's own input."""

from __future__ import annotations

import torch
from torch import Tensor


def scale_at(t: Tensor, scale: float, schedule: str = "constant") -> Tensor:
    """(B,) guidance at times t: ``scale``, or with ``sigma`` ``1 + (scale - 1) t``, which leaves clean images alone."""
    return 1 + (scale - 1) * t if schedule == "sigma" else torch.full_like(t, scale)


def contrastive_target(target: Tensor, unconditional: Tensor, scale: Tensor, project: bool = False) -> Tensor:
    """``u + g (target - u)``: the target moved away from the prediction without a prompt; scale g (B,).

    ``project`` puts ``a u`` in u's place, ``a = <target, u> / |u|^2`` per sample (Fan et al. 2025, CFG-Zero).
    ``unconditional`` must carry no gradient.
    """
    base = _projection(target, unconditional) * unconditional if project else unconditional
    return base + scale.to(target).view(-1, 1, 1, 1) * (target - base)


def _projection(target: Tensor, direction: Tensor) -> Tensor:
    along = (target * direction).flatten(1).sum(1) / direction.square().flatten(1).sum(1)
    return along.view(-1, 1, 1, 1)


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """``u + s (c - u)``: what a sampler with true CFG sees (Ho and Salimans 2022); gradient through both."""
    return unconditional + scale * (conditional - unconditional)


def embedded(count: int, least: float, most: float, generator: torch.Generator) -> list[float]:
    """The guidance that dev is told, per sample: constant where ``least`` is ``most``, else uniform between them."""
    if least == most:
        return [least] * count
    return (least + (most - least) * torch.rand(count, generator=generator, dtype=torch.float64)).tolist()
