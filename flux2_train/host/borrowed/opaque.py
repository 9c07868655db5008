"""Products with borrowed weights as operators that a compiler calls and does not look into.

A compiled block names its layers by numbers: the block's in a tensor, because a plain number would make a graph for
each block, and the layer's own, which is the same in all blocks of a kind. The weight is looked up, fetched,
dequantised and patched when the operator runs, in forward and again in backward, as in a block that is not compiled.
No graph holds one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...adapters.parts import Factors, PlainLora
from .frozen import product, transposed_product
from .libraries import fastest
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
_blocks: dict[int, Block] = {}


class Layer(NamedTuple):
    """A Linear of a block. ``forward`` runs it eagerly with its adapter; ``lora`` is that adapter if it is plain.

    ``reads_stream``: its input is a stream of the block after norm and modulation, and nothing else.
    """

    module: nn.Module
    forward: Callable[[Tensor], Tensor]
    lora: PlainLora | None = None
    reads_stream: bool = False


@dataclass
class Block:
    """A block's layers. ``begins_gradients``: its streams and modulation need no gradients, as in the first block."""

    layers: Sequence[Layer]
    begins_gradients: bool = False


def numbered(layers: Sequence[Layer]) -> Tensor:
    """The number under which operators find the layers of a block until ``forget``."""
    number = next(_numbers)
    _blocks[number] = Block(layers)
    with torch.inference_mode(False):  # where models are borrowed it is on, and autograd saves no tensor made in it
        return torch.tensor(number)


def forget(block: Tensor) -> None:
    """Let go of the layers of a block."""
    _blocks.pop(block.item(), None)


def begin_gradients(block: Tensor, begins: bool) -> None:
    """Say whether gradients begin in this block: its own streams and modulation then need none."""
    _blocks[block.item()].begins_gradients = begins


def _layer(block: Tensor, layer: int) -> Layer:
    return _blocks[block.item()].layers[layer]


def _needs_input_gradient(block: Tensor, layer: int) -> bool:
    own = _blocks[block.item()]
    return not (own.begins_gradients and own.layers[layer].reads_stream)


def _frozen(x: Tensor, block: Tensor, layer: int, out: int) -> Tensor:
    return product(_layer(block, layer).module, x, fastest(x))


def _frozen_back(grad: Tensor, block: Tensor, layer: int, wide: int) -> Tensor:
    if not _needs_input_gradient(block, layer):
        return grad.new_zeros(*grad.shape[:-1], wide)
    return transposed_product(_layer(block, layer).module, grad, fastest(grad))


def _adapted(x: Tensor, block: Tensor, layer: int, out: int) -> Tensor:
    return _layer(block, layer).forward(x)


def _lora(x: Tensor, down: Tensor, up: Tensor, scale: Tensor, block: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """See ``lora_linear.adapted_product``."""
    own = _layer(block, layer)
    return adapted_product(own.module, x, Factors(*own.lora.cast(x.dtype), scale.item()), fastest(x))


def _lora_back(
    grad: Tensor, x: Tensor, narrow: Tensor, scale: Tensor, block: Tensor, layer: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``lora_linear.gradients``; a gradient that nobody needs is zero."""
    own, needed = _layer(block, layer), _needs_input_gradient(block, layer)
    factors, needs = Factors(*own.lora.cast(x.dtype), scale.item()), (needed, True, True)
    of_x, of_down, of_up = gradients(own.module, grad, x, narrow, factors, needs, fastest(x))
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
