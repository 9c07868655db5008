"""DoRA needs the weight it sits on: what it multiplies rows by, what it changes, and its two forms in files.

Its paper divides by the norm of the adapted weight, ``W' = m (W + dW) / |W + dW|``, and so does peft. ComfyUI reads a
file's ``dora_scale`` with the norm of the base, ``W' = m (W + dW) / |W|``. Both say the same with another ``m``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from .parts import LowRank, Part, mapped

# A Linear's weight (out, in) in fp32 by its name, valid inside the context only.
Weights = Callable[[str], AbstractContextManager[Tensor]]


def is_dora(part: Part) -> bool:
    """True for a part whose effect depends on the weight it sits on."""
    return isinstance(part, LowRank) and part.magnitude is not None


def row_scale(part: LowRank, weight: Tensor) -> Tensor:
    """What DoRA multiplies each row of ``W + dW`` by (out,), in the dtype of ``weight`` (out, in)."""
    part = mapped(part, lambda tensor: tensor.to(weight))
    return part.magnitude / torch.linalg.vector_norm(weight if part.of_base else weight + part.delta(), dim=1)


def change(part: Part, weight: Tensor) -> Tensor:
    """``W' - W`` (out, in), in the dtype of ``weight``."""
    delta = mapped(part, lambda tensor: tensor.to(weight)).delta()
    if not is_dora(part):
        return delta
    scale = row_scale(part, weight)[:, None]
    return (scale - 1) * weight + scale * delta


def with_norm(parts: dict[str, Part], weights: Weights, of_base: bool) -> dict[str, Part]:
    """The parts with every DoRA in ComfyUI's form (``of_base``) or in the paper's; they change the weights alike."""
    found = dict(parts)
    for name, part in parts.items():
        if is_dora(part) and part.of_base != of_base:
            with weights(name) as weight:
                ones = replace(part, magnitude=torch.ones_like(part.magnitude), of_base=of_base)
                magnitude = row_scale(part, weight) / row_scale(ones, weight)
            found[name] = replace(ones, magnitude=magnitude.to(part.magnitude))
    return found
