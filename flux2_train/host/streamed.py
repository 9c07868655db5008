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

from ..layout import SLOTS, Layout, groups
from ..memory.streaming import Direct, Group, Ring, transfers

SOURCE = "flux2_train_source"  # on a layer: gives its weight on the device, as a context
PINNED_SHARE = 0.5  # of the host's free memory


class How(Protocol):
    """What ``borrow.Borrowed`` says of streaming."""

    layout: Layout
    via: Direct | None
    pinned: float


class StreamedWeights:
    """The streamed layers of one borrowed model. ``install`` and ``remove`` may be called any number of times."""

    def __init__(self, layers: dict[str, nn.Module], portions: list[list[str]], device: torch.device, how: How):
        self.layers = {name: layers[name] for portion in portions for name in portion}
        self.portions, self.device, self.how = portions, device, how
        self.moved: list[str] = []
        self.ring: Ring | None = None

    def install(self) -> None:
        """Take the layers' weights to host memory, if they are not there, and read them through a ring from now on."""
        masters = {name: _flat(self._taken(name)) for name in self.layers}
        portions = [{name: masters[name][0] for name in portion} for portion in self.portions]
        pins = self._pins([sum(t.nbytes for tensors in each.values() for t in tensors) for each in portions])
        ahead = self.how.layout.ahead
        packed = [Group(weights, pin) for weights, pin in zip(portions, pins, strict=True)]
        self.ring = Ring(packed, self.how.via or transfers(self.device, ahead), SLOTS, ahead=ahead)
        for name, layer in self.layers.items():
            layer.__dict__[SOURCE] = partial(self._read, name, masters[name][1])

    def _pins(self, sizes: list[int]) -> list[bool]:
        if self.device.type != "cuda":
            return [False] * len(sizes)
        return within(sizes, self.how.pinned or PINNED_SHARE * psutil.virtual_memory().available)

    def _taken(self, name: str) -> Tensor:
        layer = self.layers[name]
        if layer.weight.device.type != "cpu":
            self.moved.append(name)
            layer._parameters["weight"] = nn.Parameter(layer.weight.detach().to("cpu"), requires_grad=False)
        return layer.weight

    @contextmanager
    def _read(self, name: str, rebuild: Callable[[list[Tensor]], Tensor]) -> Iterator[Tensor]:
        with self.ring.read(name) as tensors:
            yield rebuild(tensors)

    def remove(self) -> None:
        """Give the ring's memory back, and every weight to where it was."""
        for layer in self.layers.values():
            layer.__dict__.pop(SOURCE, None)
        if self.ring is not None:
            self.ring.close()
            self.ring = None
            comfy.model_management.soft_empty_cache()
        for name in self.moved:
            weight = self.layers[name].weight.detach()
            self.layers[name]._parameters["weight"] = nn.Parameter(weight.to(self.device), requires_grad=False)
        self.moved.clear()


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
