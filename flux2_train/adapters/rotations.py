"""OFT: files hold skew-symmetric generators, which are turned into rotations here."""

from __future__ import annotations

import torch
from torch import Tensor

from .parts import Rotation

LARGEST_BLOCK = 1024  # rows and columns of the largest block that is inverted


def of_outputs(blocks: Tensor, size: tuple[int, int], limit: float, rescale: Tensor | None) -> Rotation:
    """LyCORIS's ``oft_blocks`` (n, b, b) of diag-OFT, or (stages, n, b, b) of BOFT, on a Linear of (in, out) ``size``.

    ``Q = B - B^T``; if ``limit`` is above 0 and the norm of all blocks together exceeds it, Q is scaled down to it;
    ``R = (I + Q) (I - Q)^-1`` (Cayley). diag-OFT multiplies each group of rows by ``R^T``, BOFT by ``R``. Raises
    ValueError for blocks that do not fit the size.
    """
    butterfly = blocks.ndim == 4
    _require(blocks.ndim in (3, 4) and blocks.shape[-1] == blocks.shape[-2], blocks)
    _require(blocks.shape[-3] * blocks.shape[-1] == size[1], blocks)
    turns = _cayley(_limited(blocks - blocks.mT, limit))
    if not butterfly:
        return Rotation((turns.mT.contiguous(),), size[0], rescale=_rows(rescale, size[1]))
    half, stages = blocks.shape[-1] // 2, len(blocks)
    strides = tuple(2**stage * half for stage in range(stages))
    _require(half > 0 and all(size[1] % (2 * stride) == 0 for stride in strides), blocks)
    return Rotation(tuple(turns), size[0], strides, rescale=_rows(rescale, size[1]))


def of_inputs(upper: Tensor, size: tuple[int, int], scaled: bool) -> Rotation:
    """OneTrainer's ``oft_R.weight`` (n, b (b - 1) / 2): the upper triangles of Q, on a Linear of (in, out) ``size``.

    The Neumann series of the Cayley transform that OneTrainer computes, to Q^4: ``R = I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4``,
    and ``x' = x R`` for each group of inputs. With ``scaled`` Q is divided by ``2 sqrt(b - 1)``. A single block applies
    to all groups. Raises ValueError for triangles that do not fit the size.
    """
    side = round((1 + (1 + 8 * upper.shape[-1]) ** 0.5) / 2)
    _require(upper.ndim == 2 and side * (side - 1) // 2 == upper.shape[1] and size[0] % side == 0, upper)
    groups = size[0] // side
    _require(len(upper) in (1, groups) and side <= LARGEST_BLOCK, upper)
    q = upper.new_zeros(len(upper), side, side)
    first, second = torch.triu_indices(side, side, 1)
    q[:, first, second] = upper / (2 * (side - 1) ** 0.5 if scaled else 1.0)
    q = q - q.mT
    square = q @ q
    turns = torch.eye(side) + 2 * q + 2 * square + 2 * square @ q + square @ square
    return Rotation((turns.mT.expand(groups, side, side).contiguous(),), size[1], of_inputs=True)


def _limited(q: Tensor, limit: float) -> Tensor:
    norm = torch.linalg.vector_norm(q) + 1e-8
    return q * (limit / norm) if limit > 0 and norm > limit else q


def _cayley(q: Tensor) -> Tensor:
    _require(q.shape[-1] <= LARGEST_BLOCK, q)
    one = torch.eye(q.shape[-1])
    return (one + q) @ torch.linalg.inv(one - q)


def _rows(rescale: Tensor | None, count: int) -> Tensor | None:
    if rescale is None:
        return None
    _require(rescale.numel() == count, rescale)
    return rescale.flatten()


def _require(fits: bool, tensor: Tensor) -> None:
    if not fits:
        raise ValueError(f"its rotation of {tuple(tensor.shape)} does not fit the layer")
