"""Blocks that run through torch.compile in training: one graph for each kind of block, shared by all blocks of a kind.

A kind has a twin: a block of ComfyUI's own class without weights, in whose Linears' places stand calls of the operators
of ``opaque``. Before a block runs, the twin is told its number, its LoRA's matrices and the scales of its norms; all of
them are inputs of the graph, and no tensor is a constant in it. What the compiler fuses is all that lies between the
products: norms, modulation, rotations, activations, residuals, and their backward.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FunctionType
from typing import Protocol

import comfy.model_management
import torch
import torch.nn.functional as F
from comfy.ldm.flux.layers import SingleStreamBlock
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn

from ...adapters.parts import Delta, PlainLora
from ...adapters.sums import scalar
from ...streaming.ring import tracked
from ..system import compiler
from . import last_block, opaque, opaque_attention
from .frozen import fetched, rms_scale
from .recompute import STREAMS, keeps_attention
from .rotation import Rotations
from .unread import has_gradient

ATTENTION_PATCHES = ("attn1_patch", "attn1_output_patch")
READ_STREAMS = "attn.qkv", "linear1"  # Linears of a block that read its streams after norm and modulation
FROZEN, FUSED, SUMMED = "frozen", "fused", "summed"  # a Linear alone, with a plain LoRA, with another adapter


def _attention(_: Callable, q: Tensor, k: Tensor, v: Tensor, *args, mask: Tensor | None = None, **kwargs) -> Tensor:
    call = kwargs["transformer_options"].get(CALL)
    if call is None or mask is not None:
        return attention_pytorch(q, k, v, *args, mask=mask, **kwargs)
    return torch.ops.flux2_train.block_attention.default(q, k, v, call)[0]


# Of a twin's transformer options, where attention's output is kept: the tensor of ``opaque.Call``. Elsewhere torch
# compiles the call of attention, because an operator of ours takes more processor time, for which a fast card waits.
CALL = "flux2_train_call"
OPTIONS = {"optimized_attention_override": _attention}


def while_training(compiled: Callable, original: Callable) -> Callable:
    """``compiled`` in training alone: previews run ComfyUI's own layers."""

    def block(*args, **kwargs):
        return (compiled if comfy.model_management.in_training else original)(*args, **kwargs)

    return block


class _Linear(nn.Module):
    """Stands for a Linear of every block of a kind. ``values`` are those of the block that runs now."""

    def __init__(self, number: int, out: int, how: str):
        super().__init__()
        self.number, self.out, self.how = number, out, how
        self.values: tuple = ()
        self.operators = opaque.operators()

    def forward(self, x: Tensor) -> Tensor:
        block, *values = self.values
        if not torch.is_grad_enabled():
            return self.operators.adapted(x, block, self.number, self.out)
        if self.how == FUSED:
            return self.operators.lora(x, *values, block, self.number)[0]
        y = self.operators.frozen(x, block, self.number, self.out)
        return y if self.how == FROZEN else y + values[0](x, y)


class _RMSNorm(nn.Module):
    """Stands for an RMSNorm of every block of a kind."""

    def __init__(self, eps: float | None):
        super().__init__()
        self.eps, self.scale = eps, None

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.scale.shape, self.scale, self.eps)


class _LayerNorm(nn.Module):
    """Stands for a LayerNorm without scale and shift."""

    def __init__(self, shape: tuple[int, ...], eps: float):
        super().__init__()
        self.shape, self.eps = shape, eps

    def forward(self, x: Tensor) -> Tensor:
        # Of a copy, as in blocks that are not compiled: a residual is added in place to what autograd has saved. The
        # compiler leaves the copy out again.
        return F.layer_norm(x.clone(), self.shape, eps=self.eps)


def _run(twin: nn.Module, args: tuple, kwargs: dict):
    first, *others = args or (None,)
    streams = {name: kwargs[name].clone() for name in STREAMS if name in kwargs}
    return twin(*([first.clone(), *others] if args else []), **{**kwargs, **streams})


class _Kind:
    """A compiled function for all blocks of one structure with the same kinds of adapters."""

    def __init__(self, block: nn.Module, how: Sequence[str]):
        linears, norms = _of_kind(block, _is_linear), _of_kind(block, _is_rms_norm)
        self.linears = [_Linear(number, linears[number].out_features, each) for number, each in enumerate(how)]
        self.norms = [_RMSNorm(norm.eps) for norm in norms]
        opaque_attention.register()
        places = zip([*linears, *norms], [*self.linears, *self.norms], strict=True)
        self.twin = _twin(block, {id(module): stand_in for module, stand_in in places})
        own = FunctionType(_run.__code__.replace(), _run.__globals__)  # torch counts graphs by code, for each kind anew
        self.run = torch.compile(own, backend=compiler.BACKEND, fullgraph=True)

    def __call__(self, values: Sequence[tuple], scales: Sequence[Tensor], args: tuple, kwargs: dict):
        for linear, value in zip(self.linears, values, strict=True):
            linear.__dict__["values"] = value
        for norm, scale in zip(self.norms, scales, strict=True):
            norm.__dict__["scale"] = scale
        return self.run(self.twin, args, kwargs)


class How(Protocol):
    """The part of ``borrow.Borrowed`` that compiling reads and writes."""

    compiled: bool
    notes: list[str]
    uncompiled: set[str]
    ran: bool


class Compiled:
    """The compiled kinds of one borrowed model. What cannot be compiled runs as ever, kind by kind."""

    def __init__(self, deltas: dict[str, Delta], how: How):
        self.deltas, self.how = deltas, how
        self.kinds: dict[tuple, _Kind] = {}
        self.refused: set[tuple] = set()
        self.blocks: list[_Block] = []

    def block(self, module: nn.Module, name: str, original: Callable) -> _Block:
        """``original``, the forward of the block ``name``, as a compiled function of the same arguments."""
        deltas = [self.deltas.get(f"{name}.{place}") for place, m in module.named_modules() if _is_linear(m)]
        self.blocks.append(_Block(self, module, original, deltas))
        return self.blocks[-1]

    def forget(self) -> None:
        """Let go of the model's layers."""
        while self.blocks:
            opaque.forget(self.blocks.pop().number)

    def kind(self, key: tuple, block: nn.Module) -> _Kind:
        """The compiled function of a structure."""
        if key not in self.kinds:
            self.kinds[key] = _Kind(block, key[1])
        return self.kinds[key]

    def refuse(self, key: tuple, reason: str) -> None:
        """Run blocks of a structure as with ``compile`` off from now on, and say so once."""
        self.refused.add(key)
        name = key[0].__name__
        if name not in self.how.uncompiled:
            self.how.uncompiled.add(name)
            self.how.notes.append(f"{name} is not compiled and runs as with compile 'off': {reason}.")


class _Block:
    """One block: runs compiled where it can, else as ``original`` does."""

    def __init__(self, owner: Compiled, module: nn.Module, original: Callable, deltas: Sequence[Delta | None]):
        self.owner, self.module, self.original, self.deltas = owner, module, original, deltas
        layers = {name: each for name, each in module.named_modules() if _is_linear(each)}
        columns = last_block.columns_of(module) if isinstance(module, SingleStreamBlock) else {}
        self.layers, self.norms = list(layers.values()), _of_kind(module, _is_rms_norm)
        self.number = opaque.numbered(
            [opaque.Layer(layer, layer.forward, delta, name.endswith(READ_STREAMS), columns.get(layer))
             for (name, layer), delta in zip(layers.items(), deltas, strict=True)]
        )  # fmt: skip
        self.kept: list[dict] = [{} for _ in self.norms]  # new whenever the model has been moved, as this object is
        self.reason = next(_reasons(module, deltas), "")

    def __call__(self, *args, **kwargs):
        if not self.owner.how.compiled:
            return self.original(*args, **kwargs)
        stream = kwargs["img"] if "img" in kwargs else args[0]
        key = type(self.module), tuple(_how(delta, stream.dtype) for delta in self.deltas)
        if key in self.owner.refused:
            return self.original(*args, **kwargs)
        reason = self.reason or _of_others(kwargs)
        if reason:
            self.owner.refuse(key, reason)
            return self.original(*args, **kwargs)
        values = self._values(key[1], stream, [*args, *kwargs.values()])
        if values is None:
            return self.original(*args, **kwargs)
        try:
            return self._compiled(key, values, stream, args, kwargs)
        except Exception as error:
            if not compiler.is_the_compilers(error):
                raise
            self.owner.refuse(key, compiler.reason_of(error))
        return self.original(*args, **kwargs)

    def _compiled(self, key: tuple, values: list[tuple], stream: Tensor, args: tuple, kwargs: dict):
        kind, grad = self.owner.kind(key, self.module), torch.is_grad_enabled()
        scales = [
            rms_scale(norm, stream.dtype, stream.device, kept) for norm, kept in zip(self.norms, self.kept, strict=True)
        ]
        options = {**OPTIONS, CALL: values[0][0]} if grad and keeps_attention() else OPTIONS
        kwargs = {**kwargs, "transformer_options": options}
        if grad:
            args, kwargs = _differentiable(args, kwargs)
        with tracked(grad):
            found = kind(values, scales, args, kwargs)
        self.owner.how.ran = True
        return found

    def _values(self, how: Sequence[str], stream: Tensor, arguments: Sequence) -> list[tuple] | None:
        """What the stand-ins of the Linears compute with; None if a gradient is needed of an adapter that is off."""
        if not torch.is_grad_enabled():
            return [(opaque.Call(self.number).tensor(),)] * len(self.layers)
        # A modulation of the block's own may have adapters.
        begins = not (self.module.modulation or has_gradient(arguments))
        call = opaque.Call(self.number, begins, last_block.rows()).tensor()
        found = [self._value(*each, stream) for each in zip(how, self.layers, self.deltas, strict=True)]
        return None if None in found else [(call, *each) for each in found]

    def _value(self, how: str, layer: nn.Module, delta: Delta | None, stream: Tensor) -> tuple | None:
        if how == FROZEN:
            return ()
        if how == FUSED:
            factors = delta.factors(stream.dtype)
            return None if factors is None else (*delta.parameters(), scalar(factors.scale))
        added = delta.sum_of(stream.dtype, stream.device, partial(fetched, layer))
        return None if added is None else (added,)


def _how(delta: Delta | None, dtype: torch.dtype) -> str:
    if delta is None:
        return FROZEN
    return FUSED if isinstance(delta, PlainLora) and delta.fuses(dtype) else SUMMED


def _reasons(block: nn.Module, deltas: Sequence[Delta | None]) -> Iterator[str]:
    """Why a block cannot be compiled."""
    for module in block.modules():
        known = _is_linear(module) or _is_rms_norm(module)
        if not known and any(parameter is not None for parameter in module._parameters.values()):
            yield f"it has weights of a kind that is not known here ({type(module).__name__})"
        if module is not block and (module._forward_hooks or module._forward_pre_hooks):
            yield "another node has hooked into its layers"
    for delta in deltas:
        if delta is not None and not isinstance(delta, PlainLora):
            yield "its adapters are not this pack's"
        elif delta is not None and delta.uncompiled:
            yield delta.uncompiled


def _of_others(kwargs: dict) -> str:
    """Why a block is not compiled in this call, if another node changes attention inside it."""
    patches = kwargs.get("transformer_options", {}).get("patches", {})
    found = [patch for name in ATTENTION_PATCHES for patch in patches.get(name, ())]
    others = any(not isinstance(patch, Rotations) for patch in found)
    return "another node has patched its attention" if others else ""


def _differentiable(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments with streams that all require gradients, as those of most blocks do: one graph fits all blocks."""

    def marked(stream: Tensor) -> Tensor:
        return stream if stream.requires_grad else stream.detach().requires_grad_()

    streams = {name: marked(kwargs[name]) for name in STREAMS if name in kwargs}
    return (marked(args[0]), *args[1:]) if args else args, {**kwargs, **streams}


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "weight")


def _is_rms_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.RMSNorm)


def _of_kind(block: nn.Module, wanted: Callable[[nn.Module], bool]) -> list[nn.Module]:
    return [module for module in block.modules() if wanted(module)]


def _twin(module: nn.Module, stand_ins: dict[int, nn.Module]) -> nn.Module:
    """A module of the same class and structure with other modules in some places, and without any weight."""
    if id(module) in stand_ins:
        return stand_ins[id(module)]
    if isinstance(module, nn.LayerNorm):
        return _LayerNorm(module.normalized_shape, module.eps)
    twin = copy.copy(module)
    twin.__dict__.pop("forward", None)  # ours, which runs the block itself
    twin._modules = {name: each and _twin(each, stand_ins) for name, each in module._modules.items()}
    return twin
