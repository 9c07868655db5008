"""Activations that wait for backward in host memory.

What autograd saves inside ``offloaded`` is copied to pinned host memory. In backward each tensor is copied back while
the one saved after it is in use, on a stream beside the computation. On a CPU the copies are plain: they save nothing
there, and let tests show that the results are exact. Only autograd refers to the copies: if a step is interrupted they
are freed with its graph.
"""

from __future__ import annotations

from weakref import ReferenceType, ref

import torch
from torch import Tensor


class _Channel:
    """The stream to and from a CUDA device, and the tensor saved last, so that it can be fetched early."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.last: ReferenceType[_Kept] | None = None


_channels: dict[torch.device, _Channel] = {}


def _channel(device: torch.device) -> _Channel:
    """The one channel to and from a device."""
    if device not in _channels:
        _channels[device] = _Channel(device)
    return _channels[device]


class _Kept:
    """One saved tensor in host memory. ``before`` is the one saved before it, which backward needs after it."""

    def __init__(self, tensor: Tensor, channel: _Channel):
        self.channel, self.device, self.before = channel, tensor.device, channel.last
        channel.last = ref(self)
        self.back: Tensor | None = None
        self.arrived = None
        self.host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=channel.stream is not None)
        if channel.stream is None:
            self.host.copy_(tensor)
            return
        channel.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(channel.stream):
            self.host.copy_(tensor, non_blocking=True)
        tensor.record_stream(channel.stream)

    def fetch(self) -> None:
        """Start copying it back to the device."""
        if self.back is not None:
            return
        if self.channel.stream is None:
            self.back = self.host.to(self.device, copy=True)
            return
        with torch.cuda.stream(self.channel.stream):
            self.back = self.host.to(self.device, non_blocking=True)
            self.arrived = self.channel.stream.record_event()

    def tensor(self) -> Tensor:
        """The tensor on its device again."""
        self.fetch()
        before = self.before() if self.before is not None else None
        if before is not None and self.channel.stream is not None:
            before.fetch()
        self.before = None
        self.channel.last = None
        if self.arrived is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(self.arrived)
            self.back.record_stream(stream)
        return self.back


def offloaded() -> torch.autograd.graph.saved_tensors_hooks:
    """A context manager: tensors that autograd saves inside wait in host memory. Parameters stay on the device."""

    def pack(tensor: Tensor) -> _Kept | Tensor:
        if isinstance(tensor, torch.nn.Parameter) or not tensor.numel():
            return tensor
        return _Kept(tensor, _channel(tensor.device))

    def unpack(kept: _Kept | Tensor) -> Tensor:
        return kept.tensor() if isinstance(kept, _Kept) else kept

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
