"""ComfyUI's layers, some of which get their weight from a ring instead of keeping it on the device.

Only the layer's ``weight`` is exchanged, for the moment in which it is fetched: ComfyUI's own code then finds it on the
right device and dequantises and patches it as ever. Whatever moved to host memory for a run goes back when it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Protocol

import comfy.model_management
import psutil
import torch
from torch import Tensor, nn

from ...planning.estimate import PINNED_SHARE
from ...planning.layout import SLOTS, Layout, groups
from ...streaming.ring import Direct, Group, Ring, transfers
from ..system.memory import is_out_of_memory

SOURCE = "flux2_train_source"  # on a layer: gives its weight on the device, as a context
PINNED_FROM = 1 << 16  # bytes: CUDA does not wait for smaller copies, wherever they come from


class How(Protocol):
    """What ``borrow.Borrowed`` says of streaming."""

    layout: Layout
    via: Direct | None
    pinned: float


class StreamedWeights:
    """The layers of one loaded model that are streamed at the moment.

    ``stream`` may be called again with others, ``end`` any number of times. Between ``pause`` and ``stream`` the layers
    are ComfyUI's, while buffers, host copies and pins stay. ``mapped``: the model's weights lie in a mapped file.
    ``unpinned`` counts the streamed bytes that should be in pinned memory and are not.
    """

    def __init__(self, device: torch.device, how: How, mapped: bool = False):
        self.device, self.how, self.mapped = device, how, mapped
        self.via = how.via or Direct(device)
        self.layers: dict[str, nn.Module] = {}
        self.moved: dict[str, nn.Module] = {}
        self.pins: list[Tensor] = []
        self.ring: Ring | None = None
        self.said: object = None
        self.masters: dict[str, tuple[list[Tensor], Callable[[list[Tensor]], Tensor]]] = {}
        self.unpinned = 0

    @property
    def stranded(self) -> bool:
        """After ``end``: whether weights stayed in host memory because the device had no room for them any more."""
        return bool(self.moved)

    def stream(self, layers: dict[str, nn.Module], portions: list[list[str]]) -> None:
        """Read the weights of these portions, and of no other layers, through a ring from now on.

        Those that lie on the device go to host memory; what is streamed no more goes back. Raises the device's or the
        host's own error where memory ends; it can be called again then, or ended.
        """
        said = portions, self.how.layout.ahead
        if self.ring is not None and said == self.said and all(layers[name] is m for name, m in self.layers.items()):
            self._resume()
            return
        self.close()
        self.layers = {name: layers[name] for portion in portions for name in portion}
        self._give_back([name for name in self.moved if name not in self.layers])
        if portions:
            self._open(portions)
            self.said = said

    def pause(self) -> None:
        """Leave the layers to ComfyUI until the next ``stream``. Weights that it takes for loaded are loaded again."""
        if self.moved:
            self.end()
        for layer in self.layers.values():
            layer.__dict__.pop(SOURCE, None)

    def _resume(self) -> None:
        for name, layer in self.layers.items():
            tensors, rebuild = self.masters[name]
            layer.__dict__[SOURCE] = partial(self._read, name, rebuild)
            if not self.mapped and _flat(layer.weight)[0][0].data_ptr() != tensors[0].data_ptr():
                _set(layer, rebuild(tensors))  # it was on the device in between, and this is another copy of it

    def end(self) -> None:
        """Give the ring's memory back, and every weight to where it was, as long as there is room for it."""
        self.close()
        try:
            self._give_back(list(self.moved))
        except BaseException as error:
            if not is_out_of_memory(error):
                raise

    def _open(self, portions: list[list[str]]) -> None:
        self.masters = {name: _flat(self._taken(name)) for name in self.layers}
        lying = [{name: self.masters[name][0] for name in portion} for portion in portions]
        if self.via.pins:
            sizes = [sum(t.nbytes for tensors in each.values() for t in tensors) for each in lying]
            chosen = within(sizes, self.how.pinned or PINNED_SHARE * self._host_memory(sum(sizes)))
            lying = [self._pinned(each) if pin else each for each, pin in zip(lying, chosen, strict=True)]
            self.unpinned = sum(t.nbytes for each in lying for tensors in each.values() for t in tensors if _slow(t))
        ahead = self.how.layout.ahead
        self.ring = Ring([*map(Group, lying)], self.how.via or transfers(self.device, ahead), SLOTS, ahead)
        for name, layer in self.layers.items():
            layer.__dict__[SOURCE] = partial(self._read, name, self.masters[name][1])

    def _host_memory(self, streamed: int) -> float:
        return psutil.virtual_memory().available + (0 if self.mapped else streamed)

    def _pinned(self, weights: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """The same weights in pinned memory: pinned where they lie, or, of a mapped file, a copy of them."""
        for name, tensors in weights.items():
            if self.mapped and name not in self.moved:
                weights[name] = tensors = [tensor.clone() for tensor in tensors]
            self.pins += [t for t in tensors if _slow(t) and comfy.model_management.pin_memory(t)]
        return weights

    def _taken(self, name: str) -> Tensor:
        layer = self.layers[name]
        if self.via.holds(layer.weight):
            _set(layer, self.via.to_host(layer.weight.detach()))
            self.moved[name] = layer
        return layer.weight

    @contextmanager
    def _read(self, name: str, rebuild: Callable[[list[Tensor]], Tensor]) -> Iterator[Tensor]:
        with self.ring.read(name) as tensors:
            yield rebuild(tensors)

    def close(self) -> None:
        """Give the ring's memory and the pins back; what is streamed has to be said again."""
        for layer in self.layers.values():
            layer.__dict__.pop(SOURCE, None)
        self.masters.clear()
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
    """Whether a copy from that memory stops what else is done."""
    return tensor.nbytes >= PINNED_FROM and not tensor.is_pinned()


def _set(layer: nn.Module, weight: Tensor) -> None:
    layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)


def within(sizes: list[int], budget: float) -> list[bool]:
    """Which of the portions, taken in their order, fit into so many bytes of pinned memory."""
    chosen = []
    for size in sizes:
        chosen.append(size <= budget)
        budget -= size if chosen[-1] else 0
    return chosen


def portions_of(layers: dict[str, nn.Module], layout: Layout) -> list[list[str]]:
    """The names of the Linears in each portion that the layout streams, those that can be streamed."""
    blocks: dict[str, list[str]] = {}
    for name in layers:
        if "_blocks." in name:
            blocks.setdefault(".".join(name.split(".")[:2]), []).append(name)
    found = groups(layout, list(blocks), blocks)
    usable = [[name for name in portion if can_stream(layers[name])] for portion in found]
    return [portion for portion in usable if portion]


def can_stream(layer: nn.Module) -> bool:
    """ComfyUI's own layers; those whose patches are prepared for its own paging are left to it."""
    ours = type(layer).__module__ == "comfy.ops"
    return ours and getattr(layer, "bias", None) is None and getattr(layer, "weight_lowvram_function", None) is None


def arrived(layer: nn.Module):
    """A context in which the layer's weight lies on the device, if the layer is streamed."""
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
    """The plain tensors of a weight, and what makes a weight of them again."""
    if not hasattr(weight, "__tensor_flatten__"):
        return [weight.detach()], lambda tensors: tensors[0]
    names, context = weight.__tensor_flatten__()
    kind, size, stride = type(weight), weight.size(), weight.stride()

    def rebuild(tensors: list[Tensor]) -> Tensor:
        return kind.__tensor_unflatten__(dict(zip(names, tensors, strict=True)), context, size, stride)

    return [getattr(weight, name) for name in names], rebuild
