"""Products that the last block leaves out, because nobody reads them.

The model's output is made of the image's rows of the last single block. Its other rows (text, references) act on the
image through their keys and values alone. Their queries, their MLP and what ``linear2`` makes of both are never read,
and the gradients of all these are zero. So the last block multiplies the image's rows as every block does, and the
other rows by the weights of keys and values; its attention has the image's queries. What is left out is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple

import comfy.model_management
import torch.nn.functional as F
from torch import Tensor, nn

from .eight_bit import SLOT
from .libraries import Library
from .rotation import Rotations
from .routing import KEY as ROUTING

IMAGE_TOKENS = "flux2_train_image_tokens"  # of transformer_options: tokens of the image itself, without references


class Rows(NamedTuple):
    """Rows ``start`` to ``stop`` of a stream of ``total`` are the image's."""

    start: int
    stop: int
    total: int

    @property
    def image(self) -> slice:
        """The rows that are read."""
        return slice(self.start, self.stop)

    def others(self) -> Iterator[slice]:
        """The rows before and after the image's, as far as there are any."""
        return (slice(*ends) for ends in ((0, self.start), (self.stop, self.total)) if ends[0] < ends[1])

    def read(self, tensor: Tensor, dim: int) -> Tensor:
        """The image's rows of a tensor; its dimension ``dim`` counts the rows."""
        return tensor.narrow(dim, self.start, self.stop - self.start)

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor (B, rows, ...) of the rows that are read with zeros in the others' places."""
        return F.pad(tensor, [0, 0] * (tensor.ndim - 2) + [self.start, self.total - self.stop])

    def by_sample(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The rows (total, features) of each sample of tensors (..., features) with all rows of a batch."""
        return zip(*(tensor.view(-1, self.total, tensor.shape[-1]) for tensor in tensors), strict=True)


Columns = Mapping[nn.Module, slice]
_reading: ContextVar[tuple[Rows, Columns] | None] = ContextVar("_reading", default=None)


def columns_of(block: nn.Module) -> dict[nn.Module, slice]:
    """The outputs that other rows than the image's need of a single block's Linears: keys and values, and nothing."""
    return {block.linear1: slice(block.hidden_size, 3 * block.hidden_size), block.linear2: slice(0, 0)}


def rows() -> Rows | None:
    """Which rows of the block that runs now are read; None if it is not the last one, or if all of them are."""
    own = _reading.get()
    return own and own[0]


def library_of(layer: nn.Module, library: Library) -> Library:
    """``library``, or within the last block one that leaves out what nobody reads of this layer."""
    own = _reading.get()
    return leaving_out(library, layer, own[0], own[1][layer]) if own and layer in own[1] else library


def leaving_out(library: Library, layer: nn.Module, own: Rows, columns: slice) -> Library:
    """``library`` with products that are zero where neither the image's rows nor ``columns`` are.

    ``library`` itself for a layer that is compared with products in 8 bits, which leave nothing out.
    """
    slot = layer.__dict__.get(SLOT)
    if slot is not None and slot.compares:
        return library
    parts = own, columns
    return Library(partial(_product, library, *parts), partial(_transposed, library, *parts), library.over_rows)


def _product(library: Library, own: Rows, columns: slice, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = x.new_zeros(*x.shape[:-1], weight.shape[0])
    narrow, narrow_bias = weight[columns], None if bias is None else bias[columns]
    for inputs, outputs in own.by_sample(x, y):
        outputs[own.image] = library.product(inputs[own.image], weight, bias)
        for other in own.others() if len(narrow) else ():
            outputs[other, columns] = library.product(inputs[other], narrow, narrow_bias)
    return y  # and no view of it, which blocks could not change in place


def _transposed(library: Library, own: Rows, columns: slice, grad: Tensor, weight: Tensor) -> Tensor:
    of_x, narrow = grad.new_zeros(*grad.shape[:-1], weight.shape[1]), weight[columns]
    for gradients, inputs in own.by_sample(grad, of_x):
        inputs[own.image] = library.transposed(gradients[own.image], weight)
        for other in own.others() if len(narrow) else ():
            inputs[other] = library.transposed(gradients[other, columns], narrow)
    return of_x


def attention_of_read(attention: Callable[..., Tensor], q: Tensor, *args, **kwargs) -> Tensor:
    """``attention`` (B, T, H D) for ComfyUI's arguments, ``q`` (B, H, T, D) first; zero in rows that nobody reads."""
    own = rows()
    if own is None or kwargs.get("mask") is not None or not kwargs.get("skip_reshape"):
        return attention(q, *args, **kwargs)
    return own.whole(attention(own.read(q, 2), *args, **kwargs))


class LastBlock:
    """Runs the last single block of a model, ``run``, in training, and leaves out what nobody reads.

    ``number`` counts double and single blocks together.
    """

    def __init__(self, block: nn.Module, number: int, run: Callable):
        self.columns, self.number, self.run = columns_of(block), number, run

    def __call__(self, stream: Tensor, *args, **kwargs) -> Tensor:
        own = read_rows(stream.shape[1], self.number, kwargs.get("transformer_options", {}))
        before = _reading.set(own and (own, self.columns))
        try:
            return self.run(stream, *args, **kwargs)
        finally:
            _reading.reset(before)


def read_rows(total: int, number: int, options: dict) -> Rows | None:
    """The rows that are read of the ``total`` ones that the last block, ``number``, gives; None for all of them.

    All of them while another node has patched a block, because that node may read any of them, and where token
    routing lets the block see fewer tokens.
    """
    if "img_slice" not in options:  # ComfyUI does not say where the text ends
        return None
    text, image, routing = options["img_slice"][0], options.get(IMAGE_TOKENS, 0), options.get(ROUTING)
    routed = routing is not None and any(route.first <= number <= route.last for route in routing.routes)
    if routed or not 0 < image < total or not comfy.model_management.in_training or _patched(options):
        return None
    return Rows(text, text + image, total)


def _patched(options: dict) -> bool:
    patches = [patch for each in options.get("patches", {}).values() for patch in each]
    return bool(options.get("patches_replace")) or not all(isinstance(patch, Rotations) for patch in patches)
