"""Losses per element of the velocity's error ``d = prediction - target`` (B, C, h, w), Huber's width and clamping."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def squared(d: Tensor) -> Tensor:
    """``d^2``."""
    return d.square()


def absolute(d: Tensor) -> Tensor:
    """``|d|``: its gradient is ``sign(d)``, so outliers weigh no more than others."""
    return d.abs()


def huber(d: Tensor, width: Tensor) -> Tensor:
    """``2 c (sqrt(d^2 + c^2) - c)``: like ``d^2`` below the width c, like ``2 c |d|`` above; c (B,)."""
    c = _as(width, d)
    return 2 * c * (torch.sqrt(d.square() + c**2) - c)


def smooth_l1(d: Tensor, width: Tensor) -> Tensor:
    """``2 (sqrt(d^2 + c^2) - c)``: like ``d^2 / c`` below the width c, like ``2 |d|`` above; c (B,)."""
    c = _as(width, d)
    return 2 * (torch.sqrt(d.square() + c**2) - c)


def wavelet(d: Tensor, detail: float) -> Tensor:
    """Haar wavelets: squares of the smooth band plus ``detail`` times those of the three detail bands.

    Every 2 x 2 block's energy is spread over its pixels, so the shape stays (B, C, h, w) and masks apply. The
    transform is orthonormal: with ``detail`` 1 the mean is that of ``d^2`` (Parseval), and nothing is gained.
    """
    height, width = d.shape[-2:]
    padded = F.pad(d, (0, width % 2, 0, height % 2))
    a, b, c, e = (padded[..., y::2, x::2] for y in (0, 1) for x in (0, 1))
    smooth = ((a + b + c + e) / 2).square()
    details = sum((band / 2).square() for band in (a + b - c - e, a - b + c - e, a - b - c + e))
    pixels = F.pad(torch.ones_like(d[:1, :1]), (0, width % 2, 0, height % 2))
    pixels = F.avg_pool2d(pixels, 2) * 4  # fewer at the odd edge
    energy = (smooth + detail * details) / pixels
    return energy.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., :height, :width]


def huber_width(t: Tensor, width: float, schedule: str = "constant") -> Tensor:
    """The width c (B,) of Huber and smooth L1 at times t (B,) (SimpleTuner's schedules).

    constant: c; exponential: ``c^t``, from 1 at no noise to c at pure noise; snr:
    ``(1 - c) / (1 + s)^2 + c`` with ``s = sqrt((1 - t) / (t + 1e-4))``, from c at no noise to 1 at pure noise.
    """
    if schedule == "exponential":
        return torch.exp(t * math.log(width))
    if schedule == "snr":
        signal = torch.sqrt((1 - t) / (t + 1e-4))
        return (1 - width) / (1 + signal) ** 2 + width
    return torch.full_like(t, width)


def elementwise(kind: str, width: Callable[[], Tensor], detail: float = 2.0) -> Callable[[Tensor], Tensor]:
    """The loss of that name as a function of ``d``; ``width`` gives the c (B,) that the Huber kinds need."""
    return {
        "mse": squared,
        "mae": absolute,
        "huber": lambda d: huber(d, width()),
        "smooth_l1": lambda d: smooth_l1(d, width()),
        "wavelet": lambda d: wavelet(d, detail),
    }[kind]


def clamped(losses: Tensor, least: float = 0.0, most: float = 0.0) -> Tensor:
    """Losses (B,) kept in ``least``..``most``, 0 for no limit; a sample at a limit gives no gradient."""
    return losses.clamp(least or None, most or None) if least or most else losses


def _as(width: Tensor, d: Tensor) -> Tensor:
    return width.to(d).view(-1, 1, 1, 1)
