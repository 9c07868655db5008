"""Streaming layers: ComfyUI's layers that get their weight from a ring of buffers instead of keeping it on the device.

A layer's ``weight`` is replaced only while it is fetched: ComfyUI's own code then finds it on the right device, and
dequantises and patches it as always. Weights that moved to host memory for a run go back when it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Protocol

import comfy.model_management
import psutil
import torch
from torch import Tensor, nn

from ...planning.layout import SLOTS, Layout, groups
from ...planning.work import PINNED_SHARE
from ...streaming.ring import Direct, Ring, transfers
from ..system.memory import is_out_of_memory

SOURCE = "flux2_train_source"  # attribute of a layer: a context manager that gives its weight on the device
PINNED_FROM = 1 << 16  # bytes; CUDA does not wait for smaller copies, from any memory


class How(Protocol):
    """The part of ``borrow.Borrowed`` that streaming reads."""

    layout: Layout
    via: Direct | None
    pinned: float


class StreamedWeights:
    """The layers of one loaded model whose weights this run brings to a device: streamed ones, and kept ones.

    ``stream`` may be called again with other layers, ``end`` any number of times. Between ``pause`` and ``stream`` the
    layers belong to ComfyUI, while buffers, host copies and pins stay. ``mapped``: the model's weights are mapped from
    its file. ``unpinned`` counts the streamed bytes that should be in pinned memory but are not. ``home`` is the device
    that ComfyUI loads the model on, if ``device`` is another card, which kept layers never leave. Of the host memory
    that may be pinned, this takes the share ``pinning``.
    """

    def __init__(
        self, device: torch.device, how: How, mapped: bool = False, home: torch.device | None = None,
        pinning: float = 1.0,
    ):  # fmt: skip
        self.device, self.how, self.mapped, self.pinning = device, how, mapped, pinning
        self.transfers = how.via if home is None else None
        self.via = self.transfers or Direct(home or device)
        self.kept: dict[str, list[Tensor]] = {}
        self.layers: dict[str, nn.Module] = {}
        self.moved: dict[str, nn.Module] = {}
        self.pins: list[Tensor] = []
        self.ring: Ring | None = None
        self.streaming: object = None  # what was asked for, while it is there
        self.masters: dict[str, tuple[list[Tensor], Callable[[list[Tensor]], Tensor]]] = {}
        self.unpinned = 0

    @property
    def stranded(self) -> bool:
        """After ``end``: whether weights stayed in host memory because the device had no room left for them."""
        return bool(self.moved)

    def stream(self, layers: dict[str, nn.Module], portions: list[list[str]], keep: Sequence[str] = ()) -> None:
        """From now on, read the weights of these portions through a ring, and keep those of ``keep`` on the device.

        Those on the device move to host memory; those that are no longer streamed move back. Raises the device's or the
        host's own error if memory runs out; ``stream`` or ``end`` can be called after that.
        """
        wanted = portions, self.how.layout.ahead, tuple(keep)
        if wanted == self.streaming and all(layers[name] is m for name, m in self.layers.items()):
            self._resume()
            return
        self.close()
        self.layers = {name: layers[name] for portion in [*portions, keep] for name in portion}
        self._give_back([name for name in self.moved if name not in self.layers])
        if self.layers:
            self._open(portions, keep)
            self.streaming = wanted

    def pause(self) -> None:
        """Leave the layers to ComfyUI until the next ``stream``. Weights that were moved to host memory go back."""
        if self.moved:
            self.end()
        for layer in self.layers.values():
            layer.__dict__.pop(SOURCE, None)

    def _resume(self) -> None:
        for name, layer in self.layers.items():
            tensors, rebuild = self.masters[name]
            layer.__dict__[SOURCE] = partial(self._read, name, rebuild)
            if not self.mapped and _flat(layer.weight)[0][0].data_ptr() != tensors[0].data_ptr():
                _set(layer, rebuild(tensors))  # ComfyUI moved it meanwhile, so it is another copy

    def end(self) -> None:
        """Free the ring's memory and move every weight back to where it was, as long as there is room for it."""
        self.close()
        try:
            self._give_back(list(self.moved))
        except BaseException as error:
            if not is_out_of_memory(error):
                raise

    def _open(self, portions: list[list[str]], keep: Sequence[str]) -> None:
        self.masters = {name: _flat(self._host_weight(name)) for name in self.layers}
        with torch.inference_mode(False):
            self.kept = {name: [t.to(self.device, copy=True) for t in self.masters[name][0]] for name in keep}
        if portions:
            self._open_ring(portions)
        for name, layer in self.layers.items():
            layer.__dict__[SOURCE] = partial(self._read, name, self.masters[name][1])

    def _open_ring(self, portions: list[list[str]]) -> None:
        weights = [{name: self.masters[name][0] for name in portion} for portion in portions]
        if self.via.pins:
            sizes = [sum(t.nbytes for tensors in each.values() for t in tensors) for each in weights]
            most = self.how.pinned or PINNED_SHARE * self._host_memory(sum(sizes))
            chosen = within(sizes, self.pinning * most)
            weights = [self._pinned(each) if pin else each for each, pin in zip(weights, chosen, strict=True)]
            self.unpinned = sum(t.nbytes for each in weights for tensors in each.values() for t in tensors if _slow(t))
        ahead = self.how.layout.ahead
        self.ring = Ring([*map(self.via.group, weights)], self.transfers or transfers(self.device, ahead), SLOTS, ahead)

    def _host_memory(self, streamed: int) -> float:
        return psutil.virtual_memory().available + (0 if self.mapped else streamed)

    def _pinned(self, weights: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """The same weights in pinned memory: pinned in place, or copied first if they are mapped from a file."""
        for name, tensors in weights.items():
            if self.mapped and name not in self.moved:
                weights[name] = tensors = [tensor.clone() for tensor in tensors]
            self.pins += [t for t in tensors if _slow(t) and comfy.model_management.pin_memory(t)]
        return weights

    def _host_weight(self, name: str) -> Tensor:
        """A layer's weight in host memory; moves it there if it is on the device."""
        layer = self.layers[name]
        if self.via.holds(layer.weight):
            _set(layer, self.via.to_host(layer.weight.detach()))
            self.moved[name] = layer
        return layer.weight

    @contextmanager
    def _read(self, name: str, rebuild: Callable[[list[Tensor]], Tensor]) -> Iterator[Tensor]:
        with nullcontext(self.kept[name]) if name in self.kept else self.ring.read(name) as tensors:
            yield rebuild(tensors)

    def close(self) -> None:
        """Free the ring's memory, kept weights and pins; ``stream`` must be called again to stream."""
        for layer in self.layers.values():
            layer.__dict__.pop(SOURCE, None)
        self.streaming = None
        self.masters.clear()
        self.kept.clear()
        if self.ring is not None:
            self.ring.close()
            self.ring = None
            comfy.model_management.soft_empty_cache()
        while self.pins:
            comfy.model_management.unpin_memory(self.pins.pop())

    def _give_back(self, names: list[str]) -> None:
        for name in names:
            layer = self.moved[name]
            _set(layer, self.via.to_device(layer.weight.detach()))
            del self.moved[name]


def _slow(tensor: Tensor) -> bool:
    """Whether other work waits while this tensor is copied, because its memory is not pinned."""
    return tensor.nbytes >= PINNED_FROM and not tensor.is_pinned()


def _set(layer: nn.Module, weight: Tensor) -> None:
    layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)


def within(sizes: list[int], budget: float) -> list[bool]:
    """Which portions, taken in order, fit into ``budget`` bytes of pinned memory; one that does not fit is skipped."""
    chosen = []
    for size in sizes:
        chosen.append(size <= budget)
        budget -= size if chosen[-1] else 0
    return chosen


def inside_blocks(layers: dict[str, nn.Module]) -> dict[str, list[str]]:
    """The names of each block's Linears, in the order of the blocks."""
    blocks: dict[str, list[str]] = {}
    for name in layers:
        if "_blocks." in name:
            blocks.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return blocks


def portions_of(layers: dict[str, nn.Module], layout: Layout) -> list[list[str]]:
    """The names of the Linears in each portion that the layout streams, without those that cannot be streamed."""
    blocks = inside_blocks(layers)
    portions = groups(layout, list(blocks), blocks)
    usable = [[name for name in portion if can_stream(layers[name])] for portion in portions]
    return [portion for portion in usable if portion]


def only(portions: list[list[str]], wanted: Collection[str]) -> list[list[str]]:
    """The portions with the wanted names alone, without those in which none is left."""
    return [own for own in ([name for name in portion if name in wanted] for portion in portions) if own]


def can_stream(layer: nn.Module) -> bool:
    """Whether a layer can be streamed: ComfyUI's own without bias, unless prepared for ComfyUI's own offloading."""
    ours = type(layer).__module__ == "comfy.ops"
    return ours and getattr(layer, "bias", None) is None and getattr(layer, "weight_lowvram_function", None) is None


def arrived(layer: nn.Module) -> AbstractContextManager[None]:
    """A context in which a streamed layer's weight is on the device; for other layers it does nothing."""
    source = layer.__dict__.get(SOURCE)
    return nullcontext() if source is None else _exchanged(layer, source)


@contextmanager
def _exchanged(layer: nn.Module, source: Callable) -> Iterator[None]:
    master = layer._parameters["weight"]
    with source() as weight:
        layer._parameters["weight"] = weight
        try:
            yield
        finally:
            layer._parameters["weight"] = master


def _flat(weight: Tensor) -> tuple[list[Tensor], Callable[[list[Tensor]], Tensor]]:
    """The plain tensors of a weight, and a function that makes a weight from such tensors."""
    if not hasattr(weight, "__tensor_flatten__"):
        return [weight.detach()], lambda tensors: tensors[0]
    names, context = weight.__tensor_flatten__()
    kind, size, stride = type(weight), weight.size(), weight.stride()

    def rebuild(tensors: list[Tensor]) -> Tensor:
        return kind.__tensor_unflatten__(dict(zip(names, tensors, strict=True)), context, size, stride)

    return [getattr(weight, name) for name in names], rebuild
