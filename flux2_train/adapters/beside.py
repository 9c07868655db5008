"""Bypass: what a part adds to a layer's output, computed beside the layer, whose weight stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .dora import is_dora, needs_weight, over_inputs, scale_of
from .parts import Decomposed, LowRank, Part, Rotation, Split, mapped

Weight = Callable[[], AbstractContextManager[Tensor]]  # the layer's weight (out, in), valid inside the context only


def placed(part: Part, device: torch.device, dtype: torch.dtype) -> Part:
    """A copy of the part on ``device`` in ``dtype``; magnitudes and rotations, which act on all of W, are in fp32."""

    def exact(tensor: Tensor) -> Tensor:
        return tensor.to(device, torch.float32, copy=True)

    match part:
        case Split():
            return replace(part, parts=tuple(placed(piece, device, dtype) for piece in part.parts))
        case Rotation():
            return mapped(part, exact)
    copied = mapped(part, lambda tensor: tensor.to(device, dtype, copy=True))
    return replace(copied, magnitude=exact(part.magnitude)) if is_dora(part) else copied


def settled(part: Part, weight: Tensor) -> Part:
    """The part with DoRA's magnitudes divided by their norms for this ``weight`` (out, in).

    They then are the factors of the rows or columns of ``W + dW``, as ``added`` expects: the norms are computed once
    and not in every call.
    """
    match part:
        case Split():
            return replace(part, parts=tuple(settled(piece, weight[own]) for own, piece in part.pieces()))
        case LowRank() | Decomposed() if is_dora(part):
            return replace(part, magnitude=scale_of(part, weight))
    return part


def added(part: Part, x: Tensor, y: Tensor, weight: Weight) -> Tensor:
    """``x (W' - W)^T`` (..., out) for a ``settled`` part, from the layer's input and its output without the bias.

    ``x`` is (..., in), ``y`` (..., out). ``weight`` is called only for a part that changes the layer's inputs; it
    gives the weight in the dtype of ``x``.
    """
    if not needs_weight(part):
        return part(x)
    match part:
        case Split():
            return _of_rows(part, x, y, weight)
        case Rotation():
            return _turned(part, x, y, weight)
    if over_inputs(part):
        with weight() as w:
            return F.linear((part.magnitude - 1).to(x) * x, w) + part.part(part.magnitude.to(x) * x)
    return (part.magnitude - 1).to(x) * y + part.magnitude.to(x) * part(x)


def _of_rows(part: Split, x: Tensor, y: Tensor, weight: Weight) -> Tensor:
    total = torch.zeros_like(y)
    for own, piece in part.pieces():

        @contextmanager
        def rows(own=own):
            with weight() as w:
                yield w[own]

        total[..., own] = added(piece, x, y[..., own], rows)
    return total


def _turned(part: Rotation, x: Tensor, y: Tensor, weight: Weight) -> Tensor:
    """In fp32: what a small rotation adds is the small difference of two large numbers."""
    if not part.of_inputs:
        turned = part.turned(y.float())
        return ((turned if part.rescale is None else part.rescale * turned) - y.float()).to(y)
    with weight() as w:
        moved = F.linear((part.turned(x.float()) - x.float()).to(x), w)
    if part.rescale is None:
        return moved
    return (part.rescale * (y + moved) - y).to(y)
