"""Frozen weights that are shared among processes: each keeps a part of every group, and all gather it when it is used.

A third source for the ring, beside host memory and a mapped file. The stored bytes of a group, quantised or not, are
cut into as many equal parts as there are processes. What arrives is what was cut, so nothing of the result changes.
Every process must fetch the same groups in the same order: all of them run the same passes over the same model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .ring import ALIGNMENT, Direct, Group


class Part(Group):
    """A group of which this process keeps the part ``rank`` of ``count``: ``own``, equally long in all processes."""

    def __init__(self, weights: Mapping[str, Sequence[Tensor]], rank: int, count: int, device: torch.device):
        super().__init__(weights)
        length = -(-self.size // (count * ALIGNMENT)) * ALIGNMENT
        self.size = length * count
        with torch.inference_mode(False):
            self.own = torch.zeros(length, dtype=torch.uint8, device=device)
            for source, start in self.sources:
                first, last = max(start, rank * length), min(start + source.numel(), (rank + 1) * length)
                if first < last:
                    self.own[first - rank * length : last - rank * length] = source[first - start : last - start]
        self.sources = []  # what the others keep is not held here

    def fetch(self, transfers: Gathered, buffer: Tensor, after: object) -> object:
        """See ``Group``."""
        return transfers.gather(self.own, buffer[: self.size])


class Gathered(Direct):
    """Transfers between the processes of a run. ``received`` counts the bytes that came from the others.

    A collective waits by itself for what the device was asked to do before, so a buffer is not overwritten while it is
    being read. But two collectives may run at the same time, so one that was begun for a wrong guess is waited for
    before its buffer is filled again. Call after torch.distributed was initialised.
    """

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.pins = False
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.under_way: dict[int, dist.Work] = {}  # the last one into each buffer, by its address
        self.received = 0

    def group(self, weights: Mapping[str, Sequence[Tensor]]) -> Part:
        """See ``Direct``: this process's part of the group."""
        return Part(weights, self.rank, self.count, self.device)

    def gather(self, own: Tensor, buffer: Tensor) -> dist.Work:
        """Begin to put the parts of all processes into ``buffer``, one after the other. Returns it for ``wait``."""
        self.wait(self.under_way.get(buffer.data_ptr()))
        work = dist.all_gather_into_tensor(buffer, own, async_op=True)
        self.received += buffer.nbytes - own.nbytes
        self.under_way[buffer.data_ptr()] = work
        return work

    def wait(self, arrival: dist.Work | None) -> None:
        """See ``Direct``."""
        if arrival is not None:
            arrival.wait()

    def finish(self) -> None:
        """See ``Direct``."""
        while self.under_way:
            self.under_way.popitem()[1].wait()
