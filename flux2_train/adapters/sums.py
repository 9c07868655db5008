"""What an adapter that is no plain LoRA adds to a Linear's output, from the Linear's input and output."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .parts import Base, LowRank, Part

Divisor = tuple[Tensor, Tensor | None]  # the norms that DoRA divides rows by (out,), and the base's bias


@dataclass(frozen=True)
class Sum:
    """What an adapter adds to a Linear's output, of tensors alone; ``norm`` and ``bias`` are DoRA's divisor."""

    part: Part
    dtype: torch.dtype
    strength: Tensor
    norm: Tensor | None
    bias: Tensor | None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Of the Linear's input ``x`` (..., in) and its output ``y`` (..., out)."""
        inputs = x.to(self.dtype)
        added = self.part(inputs) if self.norm is None else decomposed(self.part, inputs, y, self.norm, self.bias)
        return self.strength * added.to(y.dtype)


@cache
def scalar(value: float) -> Tensor:
    """A number as a tensor without dimensions: compiled code takes it as an input and is made once for all values."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float64)


@torch.no_grad()
def divisor(part: LowRank, base: Base, device: torch.device) -> Divisor:
    """The norm ``|W + dW|`` of every row (out,) in fp32, and the base's bias; without gradient (DoRA's paper, 4.3)."""
    with base(torch.float32, device) as (weight, bias):
        adapted = weight + LowRank(part.down.float(), part.up.float(), part.scale).delta()
        return torch.linalg.vector_norm(adapted, dim=1), None if bias is None else bias.clone()


def decomposed(part: LowRank, x: Tensor, y: Tensor, norm: Tensor, bias: Tensor | None) -> Tensor:
    """DoRA's contribution ``(m / |W + dW| - 1) W x + m / |W + dW| dW x``, the norm a constant."""
    ratio = part.magnitude / norm
    plain = y if bias is None else y - bias.to(y)
    return (ratio - 1) * plain + ratio * part(x)
