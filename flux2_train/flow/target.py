"""Rectified flow (Liu et al. 2022): straight paths from data to noise, and the velocity along them."""

from __future__ import annotations

import torch
from torch import Tensor


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """``x_t = (1 - t) x0 + t noise``; x0 and noise (B, C, h, w), t (B,)."""
    t = t.view(-1, 1, 1, 1)
    return (1 - t) * x0 + t * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """``dx_t / dt = noise - x0``."""
    return noise - x0


def differential_target(prediction: Tensor, target: Tensor, scale: float) -> Tensor:
    """``prediction + scale (target - prediction)`` without gradient through the prediction; scale 1 changes nothing.

    The target is moved ``scale`` times as far away as it is, so the mean squared error's gradient grows by
    ``scale`` (ai-toolkit's differential guidance).
    """
    if scale == 1.0:
        return target
    fixed = prediction.detach()
    return fixed + scale * (target - fixed)


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """(B,) mean over all but the batch axis, in fp32 at least."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return (prediction.to(dtype) - target.to(dtype)).square().flatten(1).mean(1)
