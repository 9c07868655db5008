"""Models whose weights take no memory until they are needed, and free it when ComfyUI unloads the model.

The models are built on torch's meta device. Weights that the model stores exactly as the file does are memory-mapped at
once: that reads nothing, and the system can drop their pages when memory is short. Weights that must be computed,
because they are quantised or have another dtype than in the file, are computed when ComfyUI first loads the model or
when one of them is read (``awaited``). The only part of ComfyUI that is extended is its patcher, by a subclass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ... import safetensors_header
from ..system.heap import freed_at_once
from . import mapping
from .awaited import awaited

ATTRIBUTE = "flux2_train_deferred"  # on a ComfyUI model: its Deferred
META, CPU = torch.device("meta"), torch.device("cpu")
OLD_INPUT_SCALE = ".scale_input"
SMALLEST = 1 << 16  # bytes; below it, memory stuck between the scales of quantised weights adds up to over a layer


@dataclass
class Deferred:
    """How a model gets its weights. It holds no reference to the model, which could otherwise never be freed.

    ``fetch`` assigns the weights to the model given to it; ``names`` are their names there. ``computed``: fetching
    computes them, so they stay when ComfyUI unloads the model, until ``drop``. ``reads_nothing``: fetching only maps
    the file. ``filled``: the model has its weights at the moment.
    """

    fetch: Callable[[nn.Module], None]
    names: frozenset[str]
    computed: bool
    reads_nothing: bool
    filled: bool = False


def outline(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file's tensors without their bytes, and its metadata; the file is not mapped.

    Two kinds are read: vectors of bytes, which hold text, and the input scales of old fp8 files, which core looks at.
    Raises UserError as ``mapping.dtype_of`` and ``safetensors_header.read``.
    """
    header, tensors = safetensors_header.read(path), {}
    for key, entry in header.tensors.items():
        tensors[key] = torch.empty(entry.shape, dtype=mapping.dtype_of(header, key), device=META)
        if (entry.dtype == "U8" and len(entry.shape) == 1) or (key.endswith(OLD_INPUT_SCALE) and not entry.shape):
            data = torch.frombuffer(bytearray(header.read(key)) or bytearray(1), dtype=torch.uint8)[: entry.nbytes]
            tensors[key] = data.view(tensors[key].dtype).view(entry.shape)
    return tensors, header.metadata


def defer(patcher: ModelPatcher, fetch: Callable[[nn.Module], None], computed: bool, reads_nothing: bool) -> None:
    """Make ``fetch`` assign the weights on first use, for a new model whose weights are on the meta device.

    If fetching ``reads_nothing``, the model gets its weights now, and again after each time they are dropped.
    """
    names = frozenset(name for name, weight in patcher.model.named_parameters() if weight.is_meta)
    setattr(patcher.model, ATTRIBUTE, Deferred(fetch, names, computed, reads_nothing))
    patcher.__class__ = _deferring(type(patcher))
    _await(patcher.model)
    if reads_nothing:
        fill(patcher.model)


def fill(model: nn.Module) -> None:
    """Fetch a model's weights, if they are deferred and not there."""
    deferred: Deferred | None = getattr(model, ATTRIBUTE, None)
    if deferred is not None and not deferred.filled:
        with freed_at_once(CPU, large=SMALLEST):
            deferred.fetch(model)
        deferred.filled = True


def drop(model: nn.Module) -> None:
    """Free the memory of deferred weights until their next use. The model must not be loaded."""
    deferred: Deferred | None = getattr(model, ATTRIBUTE, None)
    if deferred is None or not deferred.filled:
        return
    deferred.filled = False
    _await(model)
    if deferred.reads_nothing:
        with suppress(Exception):  # if the file is gone, the error comes when the weights are needed
            fill(model)


def _await(model: nn.Module) -> None:
    """Replace deferred weights by stand-ins."""
    names, reference = getattr(model, ATTRIBUTE).names, weakref.ref(model)
    for place, module in model.named_modules():
        for own, weight in module._parameters.items():
            name = f"{place}.{own}"
            if name in names:
                module._parameters[own] = awaited(weight, partial(_fetched, reference, name))


def _fetched(reference: weakref.ref[nn.Module], name: str) -> Tensor:
    """The model's weight of that name; fetches the model's weights for it."""
    model = reference()
    if model is None:
        raise RuntimeError(f"{name} cannot be read: the model that it belonged to has been freed.")
    fill(model)
    return model.get_parameter(name)


def mapped(patcher: ModelPatcher) -> bool:
    """Whether a model's weights are mapped from its file, so that the system can take their memory back."""
    deferred: Deferred | None = getattr(patcher.model, ATTRIBUTE, None)
    return not deferred.computed if deferred is not None else patcher.is_dynamic()  # with dynamic VRAM, core maps files


@contextmanager
def present(model: nn.Module) -> Iterator[None]:
    """A context in which a model has its weights, even if it is not loaded; those it had not before are dropped."""
    deferred: Deferred | None = getattr(model, ATTRIBUTE, None)
    before = deferred is None or deferred.filled
    fill(model)
    try:
        yield
    finally:
        if not before:
            drop(model)


@contextmanager
def _staying(model: nn.Module, device: torch.device | None) -> Iterator[None]:
    """A context in which core leaves layers that are already on ``device`` alone; it would copy their scales."""
    staying = [layer for layer in model.modules() if _devices(layer) == {device}]
    for layer in staying:
        layer._apply = lambda fn, recurse=True, layer=layer: layer
    try:
        yield
    finally:
        for layer in staying:
            del layer._apply


def _devices(layer: nn.Module) -> set[torch.device]:
    """The devices of a layer's weights; empty for a module that contains others."""
    if any(True for _ in layer.children()):
        return set()
    return {tensor.device for tensor in (*layer.parameters(), *layer.buffers())}


class _Deferring:
    """What is added to the ModelPatcher of a model with deferred weights."""

    def load(self, device_to=None, *args, **kwargs):
        fill(self.model)
        with _staying(self.model, device_to):
            return super().load(device_to, *args, **kwargs)

    def get_key_patches(self, *args, **kwargs):
        fill(self.model)
        return super().get_key_patches(*args, **kwargs)

    def model_state_dict(self, *args, **kwargs):
        fill(self.model)
        return super().model_state_dict(*args, **kwargs)

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        filled = getattr(self.model, ATTRIBUTE).filled  # false if reading failed: then there is nothing to move
        return super().unpatch_model(device_to if filled else None, unpatch_weights)

    def detach(self, unpatch_all=True):
        model = super().detach(unpatch_all)
        if unpatch_all and not getattr(model, ATTRIBUTE).computed:
            drop(model)
        return model

    def clone(self, *args, **kwargs):
        copy = super().clone(*args, **kwargs)
        if not isinstance(copy, _Deferring):  # core makes a plain patcher if the clone is to have no dynamic VRAM
            copy.__class__ = _deferring(type(copy))
        return copy


@cache
def _deferring(kind: type) -> type:
    return type(f"Deferred{kind.__name__}", (_Deferring, kind), {})
