"""Models whose weights take no memory before they are needed, and let it go when ComfyUI unloads them.

They are built on torch's meta device. Weights that the model stores as the file has them are then mapped at once, which
reads no byte of them: the page cache has them, and gives them up when memory is short. Weights that have to be made,
because they are quantised or of another type than in the file, are made when ComfyUI first loads the model or somebody
reads one of them (``awaited``). Only ComfyUI's patcher is extended, by a subclass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ... import safetensors_header as headers
from ..system.heap import freed_at_once
from . import mapping
from .awaited import awaited

ATTRIBUTE = "flux2_train_deferred"  # on a ComfyUI model: its Deferred
META, CPU = torch.device("meta"), torch.device("cpu")
OLD_INPUT_SCALE = ".scale_input"
SMALLEST = 1 << 16  # bytes: what lies between the scales of quantised weights would add up to more than a layer


@dataclass
class Deferred:
    """How a model comes by its weights. Knows no model, which would never be freed if it did.

    ``fetch`` assigns them to the model, in which they have these ``names``. ``made`` weights are computed on the way:
    they stay when ComfyUI unloads the model, until ``drop``. ``free``: fetching them reads no byte of them.
    """

    fetch: Callable[[nn.Module], None]
    names: frozenset[str]
    made: bool
    free: bool
    here: bool = False


def outline(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file's tensors without their bytes, and its metadata; the file is not mapped.

    Vectors of bytes, which hold text, are read, and so are the input scales of old fp8 files, which core looks at.
    Raises UserError as ``mapping.dtype_of`` and ``headers.read``.
    """
    header, found = headers.read(path), {}
    for key, entry in header.tensors.items():
        found[key] = torch.empty(entry.shape, dtype=mapping.dtype_of(header, key), device=META)
        if (entry.dtype == "U8" and len(entry.shape) == 1) or (key.endswith(OLD_INPUT_SCALE) and not entry.shape):
            data = torch.frombuffer(bytearray(header.read(key)) or bytearray(1), dtype=torch.uint8)[: entry.nbytes]
            found[key] = data.view(found[key].dtype).view(entry.shape)
    return found, header.metadata


def defer(patcher, fetch: Callable[[nn.Module], None], made: bool, free: bool) -> None:
    """Let ``fetch`` give a freshly built model, whose weights are on the meta device, its weights on first use.

    Where that is ``free`` the model gets them now, and again whenever they are dropped.
    """
    names = frozenset(name for name, weight in patcher.model.named_parameters() if weight.is_meta)
    setattr(patcher.model, ATTRIBUTE, Deferred(fetch, names, made, free))
    patcher.__class__ = _deferring(type(patcher))
    _await(patcher.model)
    if free:
        fill(patcher.model)


def fill(model: nn.Module) -> None:
    """Give a model its weights if they are deferred."""
    deferred: Deferred | None = getattr(model, ATTRIBUTE, None)
    if deferred is not None and not deferred.here:
        with freed_at_once(CPU, large=SMALLEST):
            deferred.fetch(model)
        deferred.here = True


def drop(model: nn.Module) -> None:
    """Let go of the memory of deferred weights until the next use. The model must not be loaded."""
    deferred: Deferred | None = getattr(model, ATTRIBUTE, None)
    if deferred is None or not deferred.here:
        return
    deferred.here = False
    _await(model)
    if deferred.free:
        with suppress(Exception):  # a file that has gone meanwhile is named when the weights are needed
            fill(model)


def _await(model: nn.Module) -> None:
    """Put stand-ins in the place of deferred weights."""
    names, known = getattr(model, ATTRIBUTE).names, weakref.ref(model)
    for place, module in model.named_modules():
        for own, weight in module._parameters.items():
            name = f"{place}.{own}"
            if name in names:
                module._parameters[own] = awaited(weight, partial(_found, known, name))


def _found(known: weakref.ref[nn.Module], name: str) -> Tensor:
    """The weight of that name of a model, which gets its weights for it."""
    model = known()
    if model is None:
        raise RuntimeError(f"{name} cannot be read: the model that it belonged to has been freed.")
    fill(model)
    return model.get_parameter(name)


def mapped(patcher) -> bool:
    """Whether a model's weights are mapped from its file, where the system can take their memory back."""
    deferred: Deferred | None = getattr(patcher.model, ATTRIBUTE, None)
    return not deferred.made if deferred is not None else patcher.is_dynamic()  # with dynamic VRAM core maps files


@contextmanager
def present(model: nn.Module) -> Iterator[None]:
    """A context in which a model has its weights, whether or not it is loaded; afterwards it is as before."""
    deferred: Deferred | None = getattr(model, ATTRIBUTE, None)
    before = deferred is None or deferred.here
    fill(model)
    try:
        yield
    finally:
        if not before:
            drop(model)


@contextmanager
def _staying(model: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Core moves every layer to the device, also one that is there, and copies at least the scales of its weights."""
    there = [layer for layer in model.modules() if _places(layer) == {device}]
    for layer in there:
        layer._apply = lambda fn, recurse=True, layer=layer: layer
    try:
        yield
    finally:
        for layer in there:
            del layer._apply


def _places(layer: nn.Module) -> set[torch.device]:
    """The devices of a layer's weights; none for what has parts."""
    return set() if any(True for _ in layer.children()) else {x.device for x in (*layer.parameters(), *layer.buffers())}


class _Deferring:
    """What a ModelPatcher of deferred weights does beside its own work."""

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
        here = getattr(self.model, ATTRIBUTE).here  # not if reading failed: there is nothing to move then
        return super().unpatch_model(device_to if here else None, unpatch_weights)

    def detach(self, unpatch_all=True):
        model = super().detach(unpatch_all)
        if unpatch_all and not getattr(model, ATTRIBUTE).made:
            drop(model)
        return model

    def clone(self, *args, **kwargs):
        copy = super().clone(*args, **kwargs)
        if not isinstance(copy, _Deferring):  # core makes a plain one where it wants no dynamic VRAM
            copy.__class__ = _deferring(type(copy))
        return copy


@cache
def _deferring(kind: type) -> type:
    return type(f"Deferred{kind.__name__}", (_Deferring, kind), {})
