"""Parts that need the weight they sit on: DoRA, in its two forms in files, and rotations.

DoRA's paper divides by the norm of the adapted weight, ``W' = m (W + dW) / |W + dW|``, and so does peft. ComfyUI reads
a file's ``dora_scale`` with the norm of the base, ``W' = m (W + dW) / |W|``. Each form can be written as the other with
another ``m``. Over inputs, by columns, all programs divide by the adapted weight's norm.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from .parts import Decomposed, LowRank, Part, Rotation, Split, mapped

# A Linear's weight (out, in) in fp32 by its name, valid inside the context only.
Weights = Callable[[str], AbstractContextManager[Tensor]]


def is_dora(part: Part) -> bool:
    """True for a part with DoRA's magnitudes in any of its rows."""
    match part:
        case LowRank():
            return part.magnitude is not None
        case Split():
            return any(map(is_dora, part.parts))
    return isinstance(part, Decomposed)


def needs_weight(part: Part) -> bool:
    """True for a part whose effect depends on the weight it sits on."""
    if isinstance(part, Split):
        return any(map(needs_weight, part.parts))
    return isinstance(part, Rotation) or is_dora(part)


def over_inputs(part: Part) -> bool:
    """True for DoRA with one magnitude for each input of a layer, that is, for each column of its weight."""
    return isinstance(part, Decomposed) and part.of_inputs


def scale_of(part: LowRank | Decomposed, weight: Tensor) -> Tensor:
    """DoRA's factors of the rows (out,) of ``W + dW``, or of its columns (in,) over inputs.

    ``weight`` is (out, in); the factors have its dtype.
    """
    part = mapped(part, lambda tensor: tensor.to(weight))
    normed = weight if part.of_base else weight + part.delta()
    return part.magnitude / torch.linalg.vector_norm(normed, dim=0 if over_inputs(part) else 1)


def change(part: Part, weight: Tensor) -> Tensor:
    """``W' - W`` (out, in), in the dtype of ``weight``."""
    part = mapped(part, lambda tensor: tensor.to(weight))
    if not needs_weight(part):
        return part.delta()
    match part:
        case Split():
            return _of_rows(part, weight)
        case Rotation():
            return _turned(part, weight) - weight
    scale = scale_of(part, weight)
    scale = scale if over_inputs(part) else scale[:, None]
    return (scale - 1) * weight + scale * part.delta()


def _of_rows(part: Split, weight: Tensor) -> Tensor:
    total = torch.zeros_like(weight)
    for own, piece in part.pieces():
        total[own] = change(piece, weight[own])
    return total


def _turned(part: Rotation, weight: Tensor) -> Tensor:
    """``R W``, or ``W R`` where the inputs are rotated, with the rows rescaled."""
    if part.of_inputs:  # the rows of W R are R^T times those of W
        turned = replace(part, stages=tuple(blocks.mT for blocks in part.stages)).turned(weight)
    else:
        turned = part.turned(weight.T).T
    return turned if part.rescale is None else part.rescale[:, None] * turned


def with_norm(parts: dict[str, Part], weights: Weights, of_base: bool) -> dict[str, Part]:
    """The parts with every DoRA in ComfyUI's form (``of_base``) or in the paper's; their effect is the same."""
    converted = dict(parts)
    for name, part in parts.items():
        if _of_other_norm(part, of_base):
            with weights(name) as weight:
                converted[name] = _renormed(part, weight, of_base)
    return converted


def _of_other_norm(part: Part, of_base: bool) -> bool:
    if isinstance(part, Split):
        return any(_of_other_norm(piece, of_base) for piece in part.parts)
    return is_dora(part) and not over_inputs(part) and part.of_base != of_base


def _renormed(part: Part, weight: Tensor, of_base: bool) -> Part:
    if isinstance(part, Split):
        return replace(part, parts=tuple(_renormed(piece, weight[own], of_base) for own, piece in part.pieces()))
    if not _of_other_norm(part, of_base):
        return part
    ones = replace(part, magnitude=torch.ones_like(part.magnitude), of_base=of_base)
    magnitude = scale_of(part, weight) / scale_of(ones, weight)
    return replace(ones, magnitude=magnitude.to(part.magnitude))
