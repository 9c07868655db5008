"""A frozen Linear and the LoRA on it as one function of autograd, for the adapters that most runs train.

Apart they take eleven operations forward, each of them an object of autograd's with what it saves. Together they take
three: the LoRA's wide product is added inside its own matrix product, so that the output is neither copied nor read
again by a sum, and only the input and the narrow product are saved.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...adapters.parts import Factors
from ...streaming.ring import tracked
from .frozen import product, transposed_product
from .last_block import library_of
from .libraries import USUAL, Library
from .streamed import SOURCE
from .unread import is_unread


class LoraLinear(torch.autograd.Function):
    """``y = x W^T + b + s (x A^T) B^T``, with gradients for ``x``, ``A`` and ``B``; ``W`` and ``b`` are never saved.

    ``x`` is (..., in), ``A`` (rank, in), ``B`` (out, rank). ``A`` and ``B`` are the trained parameters; ``factors``
    are their copies in the dtype of ``x``, which are multiplied. With ``z = x A^T``: ``dB = s dy^T z``,
    ``dz = s dy B``, ``dA = dz^T x``, ``dx = dy W + dz A``.
    """

    @staticmethod
    def forward(ctx, x: Tensor, down: Tensor, up: Tensor, factors: Factors, layer: nn.Module) -> Tensor:
        ctx.layer, ctx.factors, ctx.library = layer, factors, library_of(layer, USUAL)
        y, narrow = adapted_product(layer, x, factors, ctx.library)
        ctx.save_for_backward(x, narrow)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        known = *ctx.saved_tensors, ctx.factors, ctx.needs_input_grad[:3], ctx.library
        return *gradients(ctx.layer, grad, *known), None, None


def adapted_product(layer: nn.Module, x: Tensor, factors: Factors, library: Library = USUAL) -> tuple[Tensor, Tensor]:
    """``y`` (..., out) of ``LoraLinear`` and the narrow product ``z`` (rows of ``x``, rank), without gradients."""
    inputs = x.contiguous()  # a slice of attention's output is copied once for both products, and not saved
    y = product(layer, inputs, library)
    narrow = F.linear(inputs.view(-1, x.shape[-1]), factors.down)
    if not is_unread(layer, x.dtype):
        y.view(-1, y.shape[-1]).addmm_(narrow, factors.up.t(), alpha=factors.scale)
    return y, narrow


def gradients(
    layer: nn.Module, grad: Tensor, x: Tensor, narrow: Tensor, factors: Factors, needs: tuple[bool, ...] = (True,) * 3,
    library: Library = USUAL,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """``dx``, ``dA`` and ``dB`` of ``LoraLinear`` for ``grad`` (..., out); None for those that are not needed."""
    down, up, scale = factors
    rows, grad = x.reshape(-1, x.shape[-1]), grad.to(x.dtype).reshape(-1, grad.shape[-1])
    needs_x, needs_down, needs_up = needs
    of_up = _scaled(library.over_rows(grad, narrow), scale) if needs_up else None
    of_narrow = _scaled(library.transposed(grad, up), scale)
    of_down = of_narrow.t() @ rows if needs_down else None
    of_x = None
    if needs_x:
        of_x = transposed_product(layer, grad, library).addmm_(of_narrow, down).view(x.shape)
    return of_x, of_down, of_up


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    return tensor if scale == 1 else tensor.mul_(scale)


def lora_linear(layer: nn.Module, x: Tensor, down: Tensor, up: Tensor, factors: Factors) -> Tensor:
    """The layer's output for ``x`` (..., in) with a LoRA of the parameters ``down`` and ``up`` on it.

    ``factors`` are copies of both in the dtype of ``x``, or the parameters themselves. They may not change before
    backward, which reads them again.
    """
    if SOURCE not in layer.__dict__:
        return LoraLinear.apply(x, down, up, factors, layer)
    with tracked(torch.is_grad_enabled()):
        return LoraLinear.apply(x, down, up, factors, layer)
