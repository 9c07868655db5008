"""Products that a recomputation leaves out, because nobody reads them.

A block is recomputed for what autograd has to know of it again. The outputs of its last Linears are only added to the
residual, and autograd needs neither of them: multiplying them again would be a tenth of a step's products.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

import torch
from comfy.ldm.flux.layers import ModulationOut
from torch import Tensor, nn

from ...adapters.parts import Delta, PlainLora
from ...planning.layout import UNREAD

_unread: ContextVar[frozenset[nn.Module]] = ContextVar("_unread", default=frozenset())


def unread_linears(block: nn.Module, name: str, deltas: Mapping[str, Delta]) -> frozenset[nn.Module]:
    """The Linears of the block ``name`` whose outputs no gradient depends on. ``deltas``: the model's adapters.

    Not among them are Linears whose adapter computes with their output, as DoRA does. A block that computes its own
    modulation has none, because an adapter may lie on that.
    """
    if block.modulation:
        return frozenset()
    last = {each: layer for each, layer in block.named_modules() if each.endswith(UNREAD)}
    return frozenset(layer for each, layer in last.items() if _only_added_to(deltas.get(f"{name}.{each}")))


def _only_added_to(delta: Delta | None) -> bool:
    return delta is None or (isinstance(delta, PlainLora) and not delta.reads_output)


def has_gradient(argument: object) -> bool:
    """Whether an argument of a block, or one in a list of them, requires a gradient.

    The modulation, ``vec``, does where adapters act on what computes it. The block multiplies the outputs of its last
    Linears by a part of ``vec``, so that gradient depends on them.
    """
    if isinstance(argument, ModulationOut):
        argument = argument.shift, argument.scale, argument.gate
    if isinstance(argument, tuple | list):
        return any(map(has_gradient, argument))
    return isinstance(argument, Tensor) and argument.requires_grad


class Recomputing:
    """A context in which the outputs of these Linears are not read. A second backward pass enters it once more."""

    def __init__(self, linears: frozenset[nn.Module]):
        self.linears = linears

    def __enter__(self) -> None:
        self.before = _unread.set(self.linears)

    def __exit__(self, *_: object) -> None:
        _unread.reset(self.before)


def is_unread(layer: nn.Module, dtype: torch.dtype) -> bool:
    """Whether nobody reads what the layer gives now, computed in ``dtype``.

    In float16 ComfyUI's blocks end with ``nan_to_num``, whose gradient depends on the outputs, so they are read.
    """
    return layer in _unread.get() and dtype != torch.float16


def in_its_place(x: Tensor, out: int) -> Tensor:
    """What stands for an output (..., out) that nobody reads: NaN, so that a gradient that did depend on it shows."""
    return x.new_full((*x.shape[:-1], out), torch.nan)
