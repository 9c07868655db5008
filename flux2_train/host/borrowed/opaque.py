"""Products with borrowed weights as operators that a compiler calls and does not look into.

A compiled block names its layers by numbers: the block's in a tensor, because a plain number would make a graph for
each block, and the layer's own, which is the same in all blocks of a kind. The tensor also says how this call of the
block differs from others, see ``Call``. The weight is looked up, fetched,
dequantised and patched when the operator runs, in forward and again in backward, as in a block that is not compiled.
No graph holds one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...adapters.parts import Factors, PlainLora
from .frozen import product, transposed_product
from .last_block import Rows, leaving_out
from .libraries import Library, fastest
from .lora_linear import adapted_product, gradients

NAMESPACE = "flux2_train"
SCHEMAS = {
    "frozen": "(Tensor x, Tensor block, int layer, int out) -> Tensor",
    "frozen_back": "(Tensor grad, Tensor block, int layer, int wide) -> Tensor",
    "adapted": "(Tensor x, Tensor block, int layer, int out) -> Tensor",
    "lora": "(Tensor x, Tensor down, Tensor up, Tensor scale, Tensor block, int layer) -> (Tensor, Tensor)",
    "lora_back": "(Tensor grad, Tensor x, Tensor narrow, Tensor scale, Tensor block, int layer) "
    "-> (Tensor, Tensor, Tensor)",
}
_numbers = itertools.count()
_blocks: dict[int, Sequence[Layer]] = {}


class Layer(NamedTuple):
    """A Linear of a block. ``forward`` runs it eagerly with its adapter; ``lora`` is that adapter if it is plain.

    ``reads_stream``: its input is a stream of the block after norm and modulation, and nothing else. ``columns``: the
    outputs that other rows than the image's need of it if the block is the last one, see ``last_block``.
    """

    module: nn.Module
    forward: Callable[[Tensor], Tensor]
    lora: PlainLora | None = None
    reads_stream: bool = False
    columns: slice | None = None


def numbered(layers: Sequence[Layer]) -> int:
    """The number under which operators find the layers of a block until ``forget``."""
    number = next(_numbers)
    _blocks[number] = layers
    return number


def forget(number: int) -> None:
    """Let go of the layers of a block."""
    _blocks.pop(number, None)


class Call(NamedTuple):
    """A call of a block, as operators know it.

    ``begins_gradients``: its streams and modulation need no gradients, as in the first block. ``rows``: those that are
    read of the last block.
    """

    number: int
    begins_gradients: bool = False
    rows: Rows | None = None

    def tensor(self) -> Tensor:
        """What a graph hands on, of five numbers."""
        with torch.inference_mode(False):  # where models are borrowed it is on, and autograd saves no tensor made in it
            return torch.tensor([self.number, self.begins_gradients, *(self.rows or (0, 0, 0))])

    @classmethod
    def of(cls, block: Tensor) -> Call:
        """The call in ``tensor``, which is read at once: to take single numbers of it takes longer."""
        number, begins, *rows = block.tolist()
        return cls(number, bool(begins), Rows(*rows) if rows[-1] else None)


def _known(block: Tensor, layer: int) -> tuple[Layer, Call]:
    call = Call.of(block)
    return _blocks[call.number][layer], call


def _library(tensor: Tensor, own: Layer, call: Call) -> Library:
    library = fastest(tensor)
    return leaving_out(library, own.module, call.rows, own.columns) if call.rows and own.columns else library


def _frozen(x: Tensor, block: Tensor, layer: int, out: int) -> Tensor:
    own, call = _known(block, layer)
    return product(own.module, x, _library(x, own, call))


def _frozen_back(grad: Tensor, block: Tensor, layer: int, wide: int) -> Tensor:
    own, call = _known(block, layer)
    if call.begins_gradients and own.reads_stream:
        return grad.new_zeros(*grad.shape[:-1], wide)
    return transposed_product(own.module, grad, _library(grad, own, call))


def _adapted(x: Tensor, block: Tensor, layer: int, out: int) -> Tensor:
    return _known(block, layer)[0].forward(x)


def _lora(x: Tensor, down: Tensor, up: Tensor, scale: Tensor, block: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """See ``lora_linear.adapted_product``."""
    own, call = _known(block, layer)
    factors = Factors(*own.lora.cast(x.dtype), scale.item())
    return adapted_product(own.module, x, factors, _library(x, own, call))


def _lora_back(
    grad: Tensor, x: Tensor, narrow: Tensor, scale: Tensor, block: Tensor, layer: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``lora_linear.gradients``; a gradient that nobody needs is zero."""
    own, call = _known(block, layer)
    needs = (not (call.begins_gradients and own.reads_stream), True, True)
    factors = Factors(*own.lora.cast(x.dtype), scale.item())
    of_x, of_down, of_up = gradients(own.module, grad, x, narrow, factors, needs, _library(x, own, call))
    return x.new_zeros(x.shape) if of_x is None else of_x, of_down, of_up


def _shape_of_lora(x, down, up, scale, block, layer):
    rows = x.numel() // x.shape[-1]
    return x.new_empty(*x.shape[:-1], up.shape[0]), x.new_empty(rows, down.shape[0])


def _shape_of_lora_back(grad, x, narrow, scale, block, layer):
    rank = narrow.shape[1]
    return x.new_empty(x.shape), x.new_empty(rank, x.shape[-1]), x.new_empty(grad.shape[-1], rank)


def _wide(x, block, layer, out):
    return x.new_empty(*x.shape[:-1], out)


@cache
def operators() -> SimpleNamespace:
    """The operators, registered with torch when they are first asked for."""
    kernels = {"frozen": _frozen, "frozen_back": _frozen_back, "adapted": _adapted, "lora": _lora,
               "lora_back": _lora_back}  # fmt: skip
    shapes = {"lora": _shape_of_lora, "lora_back": _shape_of_lora_back}
    found = registered(SCHEMAS, kernels, {name: shapes.get(name, _wide) for name in SCHEMAS})
    _differentiate(found)
    return found


def registered(schemas: dict[str, str], kernels: dict[str, Callable], shapes: dict[str, Callable]) -> SimpleNamespace:
    """Operators by name, without gradients yet; they live as long as their ``library``, which is among them.

    ``kernels`` compute, and ``shapes`` give empty tensors in the shape and memory layout of what they return.
    """
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    for name, schema in schemas.items():
        library.define(f"{name}{schema}", tags=torch.Tag.pt2_compliant_tag)
        library.impl(name, kernels[name], "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", shapes[name], lib=library)
    found = {name: getattr(getattr(torch.ops, NAMESPACE), name).default for name in schemas}
    return SimpleNamespace(library=library, **found)


def _differentiate(ops: SimpleNamespace) -> None:
    def keep_frozen(ctx, inputs, output):
        x, block, layer, _ = inputs
        ctx.save_for_backward(block)
        ctx.layer, ctx.wide, ctx.dtype = layer, x.shape[-1], x.dtype

    def frozen_back(ctx, grad):
        (block,) = ctx.saved_tensors
        return ops.frozen_back(grad.to(ctx.dtype), block, ctx.layer, ctx.wide), None, None, None

    def keep_lora(ctx, inputs, output):
        x, _, _, scale, block, layer = inputs
        ctx.save_for_backward(x, output[1], scale, block)
        ctx.layer = layer

    def lora_back(ctx, grad, _):
        x, narrow, scale, block = ctx.saved_tensors
        return *ops.lora_back(grad, x, narrow, scale, block, ctx.layer), None, None, None

    torch.library.register_autograd(f"{NAMESPACE}::frozen", frozen_back, setup_context=keep_frozen, lib=ops.library)
    torch.library.register_autograd(f"{NAMESPACE}::lora", lora_back, setup_context=keep_lora, lib=ops.library)
