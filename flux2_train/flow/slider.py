"""Concept sliders (Gandikota et al. 2023, arXiv 2311.12092): the same adapter at strength 1 and -1."""

from __future__ import annotations

from torch import Tensor


def slider_target(neutral: Tensor, positive: Tensor, negative: Tensor, direction: float, guidance: float) -> Tensor:
    """What the adapter at strength ``direction`` (1 or -1) predicts for the neutral prompt.

    ``neutral + direction guidance (positive - negative)``, all three predicted by the base model for the same ``x_t``.
    The paper has it for noise. At one ``x_t`` and ``t`` velocity depends linearly on noise: the formula is the same.
    """
    return neutral + direction * guidance * (positive - negative)


def with_other_image(x_t: Tensor, target: Tensor, t: Tensor, x0: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """``x_t`` and velocity target (B, C, h, w) with the same noise on another image.

    ``t`` (B,); ``x0`` is the image that they were made of.
    """
    moved = other - x0
    return x_t + (1 - t.view(-1, 1, 1, 1)) * moved, target - moved
