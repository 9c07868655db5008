"""Activations that wait for backward in host memory.

What autograd saves inside ``offloaded`` goes to pinned host memory and comes back one ahead of its use, in the reverse
order, on a stream beside what is computed. On a CPU the copies are plain, which costs memory and proves that it is
exact. Only autograd holds them: what a step that broke off has saved goes with its graph.
"""

from __future__ import annotations

from weakref import ReferenceType, ref

import torch
from torch import Tensor


class _Way:
    """The stream to and from a CUDA device, and what was saved last, so that it can be fetched early."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.last: ReferenceType[_Kept] | None = None


_ways: dict[torch.device, _Way] = {}


def _way(device: torch.device) -> _Way:
    """The one way to and from a device."""
    if device not in _ways:
        _ways[device] = _Way(device)
    return _ways[device]


class _Kept:
    """One saved tensor in host memory. ``before`` was saved before it, and will be needed after it."""

    def __init__(self, tensor: Tensor, way: _Way):
        self.way, self.device, self.before = way, tensor.device, way.last
        way.last = ref(self)
        self.back: Tensor | None = None
        self.arrived = None
        self.host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=way.stream is not None)
        if way.stream is None:
            self.host.copy_(tensor)
            return
        way.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(way.stream):
            self.host.copy_(tensor, non_blocking=True)
        tensor.record_stream(way.stream)

    def fetch(self) -> None:
        """Start the way back."""
        if self.back is not None:
            return
        if self.way.stream is None:
            self.back = self.host.to(self.device, copy=True)
            return
        with torch.cuda.stream(self.way.stream):
            self.back = self.host.to(self.device, non_blocking=True)
            self.arrived = self.way.stream.record_event()

    def tensor(self) -> Tensor:
        """The tensor on its device again."""
        self.fetch()
        before = self.before() if self.before is not None else None
        if before is not None and self.way.stream is not None:
            before.fetch()
        self.before = None
        self.way.last = None
        if self.arrived is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(self.arrived)
            self.back.record_stream(stream)
        return self.back


def offloaded():
    """A context; tensors that autograd saves in it wait in host memory. Parameters stay where they are."""

    def pack(tensor: Tensor):
        if isinstance(tensor, torch.nn.Parameter) or not tensor.numel():
            return tensor
        return _Kept(tensor, _way(tensor.device))

    def unpack(kept) -> Tensor:
        return kept.tensor() if isinstance(kept, _Kept) else kept

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
