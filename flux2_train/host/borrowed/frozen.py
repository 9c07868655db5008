"""Frozen layers of ComfyUI's model, made differentiable in their input and nothing else.

ComfyUI's weights may be inference tensors, quantised, on another device or gone by the time of backward, so
autograd must never hold one. A frozen Linear therefore fetches its weight the way ComfyUI's own layers do
(``comfy.ops.cast_bias_weight``: device moves, dequantisation, weight patches), in forward and again in backward,
and saves nothing at all. Layers of other packs (GGUF) cast their weights in their own way: they are run once, and the
weight that they pass to ``F.linear`` is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import comfy.model_management
import comfy.ops
import torch
import torch.nn.functional as F
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import UserError
from ...streaming.ring import tracked
from . import int8
from .eight_bit import SLOT, Product, Slot
from .last_block import library_of
from .libraries import USUAL, Library
from .streamed import SOURCE, arrived
from .unread import in_its_place, is_unread

# Attributes of layers whose weight is streamed, comes from dynamic VRAM, or is patched on its way
_FETCHED = {SOURCE, "_v", "weight_lowvram_function"}


@contextmanager
def fetched(layer: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Weight and bias that a ComfyUI layer computes with, in ``dtype`` on ``device``; valid inside the block only.

    Raises ComfyUI's interrupt where the user has cancelled, as ComfyUI's own layers do, and UserError for another
    pack's layer that does not use them in a plain ``F.linear``.
    """
    comfy.model_management.throw_exception_if_processing_interrupted()
    if type(layer).__module__ != "comfy.ops":
        yield _observed(layer, dtype, device)
        return
    with arrived(layer), _cast(layer, dtype, device) as weight_and_bias:
        yield weight_and_bias


def resident(layer: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """The layer's own weight (out, in) if the layer multiplies by exactly that tensor, else None: it must be fetched.

    Such a weight is plain, in ``dtype`` on ``device``, and the layer has no patch and no bias. ComfyUI's casting would
    look at all this and give the same tensor. Raises ComfyUI's interrupt as ``fetched`` does.
    """
    comfy.model_management.throw_exception_if_processing_interrupted()
    if type(layer).__module__ != "comfy.ops" or not layer.__dict__.keys().isdisjoint(_FETCHED):
        return None
    weight = layer._parameters.get("weight")
    if type(weight) is not nn.Parameter or weight.dtype != dtype or weight.device != device:
        return None
    changed = layer.weight_function or "pre_quant_scale" in layer._parameters
    if changed or layer._parameters.get("bias") is not None:
        return None
    return weight.data  # a parameter that was moved outside of inference mode has no version counter


@contextmanager
def _cast(layer: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    with _taken(layer, dtype, dtype, device) as (weight, bias):
        with torch.inference_mode():
            plain = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
            plain = plain.to(dtype).data  # .data: a parameter moved outside of inference mode has no version counter
            scale = getattr(layer, "pre_quant_scale", None)  # AWQ files scale the layer's input
            if scale is not None:
                plain = plain * scale.to(plain)
        yield plain, bias


@contextmanager
def _taken(
    layer: nn.Module, dtype: torch.dtype, bias_dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Weight and bias as ComfyUI's casting gives them; it may leave the weight quantised if that has ``dtype``."""
    with torch.inference_mode():  # the mode ComfyUI's casting code expects; outside of it weights get cloned
        weight, bias, handle = comfy.ops.cast_bias_weight(
            layer, dtype=dtype, bias_dtype=bias_dtype, device=device, offloadable=True
        )
    try:
        yield weight, bias
    finally:
        with torch.inference_mode():
            comfy.ops.uncast_bias_weight(layer, weight, bias, handle)


class _Linears(TorchFunctionMode):
    """Notes weight and bias of every ``F.linear`` that runs inside."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor | None]] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear:
            weight, bias = (_argument(place, name, args, kwargs) for place, name in ((1, "weight"), (2, "bias")))
            self.seen.append((_copied(weight), None if bias is None else _copied(bias)))
        return function(*args, **(kwargs or {}))


def _copied(tensor: Tensor) -> Tensor:
    """A plain copy of a tensor whose memory may be reused at once. GGUF's own ``clone`` returns the tensor itself."""
    return tensor.as_subclass(Tensor).clone()


def _argument(place: int, name: str, args: tuple, kwargs: dict | None) -> Tensor | None:
    return args[place] if len(args) > place else (kwargs or {}).get(name)


def _observed(layer: nn.Module, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Weight and bias that another pack's layer multiplies with, after its own dequantising and patching."""
    with torch.inference_mode(), _Linears() as linears:
        type(layer).forward(layer, torch.zeros(1, layer.in_features, dtype=dtype, device=device))
    if len(linears.seen) != 1:
        raise UserError(
            f"The MODEL's layers are of {type(layer).__module__}.{type(layer).__qualname__}, which do not multiply by "
            "a weight that can be read, so nothing can be trained through them; load the model in another format."
        )
    return linears.seen[0]


def row_norms(layer: nn.Module, device: torch.device) -> Tensor:
    """L2 norm of every row of a layer's weight (out,), fp32 on ``device``: the start of DoRA's magnitudes."""
    with fetched(layer, torch.float32, device) as (weight, _):
        return torch.linalg.vector_norm(weight, dim=1).clone()


@contextmanager
def numbers(layer: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[int8.Numbers, Tensor | None]]:
    """A ComfyUI layer's weight in int8, and its bias in ``dtype``, on ``device``; valid inside the block only.

    A weight that is stored in int8 is used as it is stored, another one is quantised from ``dtype``. The layer has a
    slot, which may keep its numbers.
    """
    slot: Slot = layer.__dict__[SLOT]
    own = resident(layer, dtype, device)
    if slot.kept is not None:
        yield slot.kept, None
        return
    if own is not None:
        yield slot.keep(layer, int8.quantised(own)), None
        return
    with arrived(layer):
        weight = layer._parameters["weight"]
        if int8.stored(weight) is None:
            with _cast(layer, dtype, device) as (weight, bias):
                yield slot.keep(layer, int8.quantised(weight)), bias
            return
        with _taken(layer, weight.dtype, dtype, device) as (weight, bias):
            yield int8.stored(weight), bias


def product(layer: nn.Module, x: Tensor, library: Library = USUAL) -> Tensor:
    """``x W^T + b`` (..., out) with the layer's weight in the dtype and on the device of ``x`` (..., in).

    In 8 bits where the layer's slot says so, see ``eight_bit``; not multiplied where nobody reads it, see ``unread``.
    """
    if is_unread(layer, x.dtype):
        return in_its_place(x, layer.out_features)
    return _multiplied(layer, x, partial(_product, library), int8.product, adds_bias=True)


def transposed_product(layer: nn.Module, grad: Tensor, library: Library = USUAL) -> Tensor:
    """``grad W`` (..., in), the gradient of ``product`` for its input, of ``grad`` (..., out); in 8 bits as there."""
    return _multiplied(layer, grad, partial(_transposed_product, library), int8.transposed_product, adds_bias=False)


def _multiplied(
    layer: nn.Module, x: Tensor, exactly: Callable[[nn.Module, Tensor], Tensor], in_8_bits: Product, adds_bias: bool
) -> Tensor:
    slot: Slot | None = layer.__dict__.get(SLOT)
    if slot is None or not (slot.acts or slot.compares):
        return exactly(layer, x)
    y, rows = exactly(layer, x) if slot.compares else None, x.reshape(-1, x.shape[-1])
    with numbers(layer, x.dtype, x.device) as (weight, bias):
        bias = bias if adds_bias else None
        if y is None:
            found = in_8_bits(rows, weight)
            return (found if bias is None else found.add_(bias)).view(*x.shape[:-1], -1)
        exact = y.view(-1, y.shape[-1])
        slot.compare(in_8_bits, rows, weight, exact if bias is None else exact - bias)
    return y


def _product(library: Library, layer: nn.Module, x: Tensor) -> Tensor:
    own = resident(layer, x.dtype, x.device)
    if own is not None:
        return library.product(x, own, None)
    with fetched(layer, x.dtype, x.device) as (weight, bias):
        return library.product(x, weight, bias)


def _transposed_product(library: Library, layer: nn.Module, grad: Tensor) -> Tensor:
    own = resident(layer, grad.dtype, grad.device)
    if own is not None:
        return library.transposed(grad, own)
    with fetched(layer, grad.dtype, grad.device) as (weight, _):
        return library.transposed(grad, weight)


class FrozenLinear(torch.autograd.Function):
    """``y = x W^T + b`` with ``dL/dx = dL/dy W``; no gradient for ``W`` and ``b``, nothing saved for backward."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer, ctx.dtype, ctx.library = layer, x.dtype, library_of(layer, USUAL)
        return product(layer, x, ctx.library)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return transposed_product(ctx.layer, grad.to(ctx.dtype), ctx.library), None


def frozen_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's output for ``x`` (..., in features), differentiable in ``x``."""
    if SOURCE not in layer.__dict__:
        return FrozenLinear.apply(x, layer)
    with tracked(torch.is_grad_enabled()):
        return FrozenLinear.apply(x, layer)


def frozen_rms_norm(layer: nn.Module, x: Tensor, kept: dict[tuple, Tensor]) -> Tensor:
    """RMSNorm with a copy of its small scale, because autograd saves the scale and must not save ComfyUI's tensor.

    The copy stays in ``kept``, which must be a new dictionary whenever the model may have been moved or patched.
    """
    own = rms_scale(layer, x.dtype, x.device, kept)
    return F.rms_norm(x, own.shape, own, layer.eps)


def rms_scale(layer: nn.Module, dtype: torch.dtype, device: torch.device, kept: dict[tuple, Tensor]) -> Tensor:
    """The copy of an RMSNorm's scale that stays in ``kept``, made when it is first asked for."""
    own = kept.get((dtype, device))
    if own is None:
        with fetched(layer, dtype, device) as (weight, _):
            own = kept[dtype, device] = weight.detach().clone()
    return own
