"""What an adapter adds to one Linear, whatever trained it or whichever file it came from.

The common ground of training, file formats and LoRA Apply: live parameters, a file's tensors and ComfyUI's patches
are all read as one of these, and everything that is done with an adapter is done with these.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """LoRA (Hu et al. 2021): ``dW = scale * up @ down``, ``down`` (rank, in), ``up`` (out, rank).

    With ``magnitude`` (out,) it is DoRA (Liu et al. 2024): ``W' = magnitude * (W + dW) / |W + dW|``, the norm per row.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0
    magnitude: Tensor | None = None

    def delta(self) -> Tensor:
        """dW (out, in), for DoRA without its magnitude."""
        return self.scale * (self.up @ self.down)

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (..., in) to ``x dW^T`` (..., out)."""
        return F.linear(F.linear(x, self.down), self.up) * self.scale


@dataclass(frozen=True)
class Hadamard:
    """LoHa (Hyeon-Woo et al. 2021): ``dW = scale * (up1 @ down1) * (up2 @ down2)``, sizes as in LowRank."""

    up1: Tensor
    down1: Tensor
    up2: Tensor
    down2: Tensor
    scale: float = 1.0

    def delta(self) -> Tensor:
        """dW (out, in)."""
        return self.scale * (self.up1 @ self.down1) * (self.up2 @ self.down2)

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (..., in) to ``x dW^T`` (..., out)."""
        return F.linear(x, self.delta())


@dataclass(frozen=True)
class Kronecker:
    """LoKr (Yeh et al. 2023): ``dW = scale * kron(left, right)``.

    ``left`` is (a, b) and ``right`` (c, d) with out = a c, in = b d; each is one matrix, or two whose product it is.
    """

    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    scale: float = 1.0

    def factors(self) -> tuple[Tensor, Tensor]:
        """Both factors multiplied out: (a, b) and (c, d)."""
        return _product(self.left), _product(self.right)

    def delta(self) -> Tensor:
        """dW (out, in)."""
        return self.scale * torch.kron(*self.factors())

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (..., in) to ``x dW^T`` (..., out), without ever forming dW: ``left X right^T`` with X (b, d)."""
        left, right = self.factors()
        blocks = F.linear(x.unflatten(-1, (left.shape[1], right.shape[1])), right)
        return (left @ blocks).flatten(-2) * self.scale


Part = LowRank | Hadamard | Kronecker


def _product(matrices: tuple[Tensor, ...]) -> Tensor:
    return matrices[0] if len(matrices) == 1 else matrices[0] @ matrices[1]
