"""Frozen weights stay in host memory and are copied to the device, group by group, just before they are used.

They never change, so nothing is copied back: the master copy is in host memory, and a ring of buffers on the device.
While one group is in use the next is being copied, on a stream of its own. The ring learns which group is next from
what followed the last time: forward, recomputation, backward and passes without gradients each have their own order,
and nobody has to announce them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

ALIGNMENT = 256  # bytes; kernels that read vectors need aligned addresses
_tracked: ContextVar[bool | None] = ContextVar("_tracked", default=None)


@contextmanager
def tracked(gradients: bool) -> Iterator[None]:
    """Declare whether the weights that are read inside belong to a pass with gradients.

    The forward of an autograd function, in which weights are read, always runs with gradients off. Without this
    declaration a pass with gradients and one without would look the same, and the guess of what follows their last
    group would be wrong.
    """
    before = _tracked.set(gradients)
    try:
        yield
    finally:
        _tracked.reset(before)


def _has_gradients() -> bool:
    """Whether the current pass has gradients: as ``tracked`` declares, outside of it as torch says."""
    declared = _tracked.get()
    return torch.is_grad_enabled() if declared is None else declared


class Direct:
    """A device, and transfers to it that are complete when they return: for a CPU, or where streams are not wanted.

    ``pins``: whether copies from pinned host memory are faster.
    """

    def __init__(self, device: torch.device):
        self.device, self.pins = device, device.type == "cuda"

    def group(self, weights: Mapping[str, Sequence[Tensor]]) -> Group:
        """Weights that will be fetched together by these transfers."""
        return Group(weights)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies on the device and not in host memory."""
        return tensor.device.type != "cpu"

    def to_host(self, tensor: Tensor) -> Tensor:
        """A copy in host memory of a tensor on the device."""
        return tensor.to("cpu")

    def to_device(self, tensor: Tensor) -> Tensor:
        """A copy on the device of a tensor in host memory. Raises the device's own error if it has no room."""
        return tensor.to(self.device)

    def empty(self, size: int) -> Tensor:
        """A buffer of ``size`` bytes on the device, which can be written in inference mode and outside of it."""
        with torch.inference_mode(False):
            return torch.empty(size, dtype=torch.uint8, device=self.device)

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]], after: object) -> object:
        """Copy each (source, target) after the point ``after`` (from ``mark``). Returns the arrival for ``wait``."""
        for source, target in pairs:
            target.copy_(source)
        return None

    def wait(self, arrival: object) -> None:
        """Make everything that is computed from here on wait for that copy."""

    def mark(self) -> object:
        """The point that computation has reached, for ``copy`` to wait for."""
        return None

    def finish(self) -> None:
        """Return when all transfers are complete."""


class Streamed(Direct):
    """Transfers on a CUDA (or ROCm) stream of their own, beside the computation."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.stream = torch.cuda.Stream(device)

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]], after: torch.cuda.Event | None) -> torch.cuda.Event:
        """See ``Direct``. Only sources in pinned memory run beside the computation."""
        if after is not None:
            self.stream.wait_event(after)
        with torch.cuda.stream(self.stream):
            for source, target in pairs:
                target.copy_(source, non_blocking=True)
        return self.stream.record_event()

    def wait(self, arrival: torch.cuda.Event | None) -> None:
        """See ``Direct``."""
        if arrival is not None:
            torch.cuda.current_stream(self.device).wait_event(arrival)

    def mark(self) -> torch.cuda.Event:
        """See ``Direct``."""
        return torch.cuda.current_stream(self.device).record_event()

    def finish(self) -> None:
        """See ``Direct``."""
        self.stream.synchronize()


def transfers(device: torch.device, streams: bool = True) -> Direct:
    """The fastest kind of transfers that the device has."""
    return Streamed(device) if streams and device.type == "cuda" else Direct(device)


@dataclass(frozen=True)
class _Piece:
    """Where a tensor lies in a group's buffer, with its shape and dtype."""

    start: int
    size: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def of(self, buffer: Tensor) -> Tensor:
        return buffer[self.start : self.start + self.size].view(self.dtype).view(self.shape)


class Group:
    """Weights that are copied together: the tensors of each, by its name, and their places in a buffer.

    They are copied from where they are in host memory, which may be a mapped file.
    """

    def __init__(self, weights: Mapping[str, Sequence[Tensor]]):
        self.pieces: dict[str, list[_Piece]] = {}
        self.size, self.sources = 0, []
        for name, tensors in weights.items():
            self.pieces[name] = []
            for tensor in tensors:
                piece = _Piece(self.size, tensor.nbytes, tuple(tensor.shape), tensor.dtype)
                self.pieces[name].append(piece)
                self.sources.append((_bytes(tensor), piece.start))
                self.size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT

    def fetch(self, transfers: Direct, buffer: Tensor, after: object) -> object:
        """Begin to put the group into a buffer after the point ``after``. Returns it for ``transfers.wait``."""
        return transfers.copy(self.pairs(buffer), after)

    def pairs(self, buffer: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(source, target) for every tensor that has to be copied into a buffer."""
        return [(source, buffer[start : start + source.numel()]) for source, start in self.sources]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


@dataclass(eq=False)
class _Slot:
    """A buffer: the group in it, when that arrives, when it was last read, and how many readers it has now."""

    buffer: Tensor
    group: int | None = None
    arrival: object = None
    free: object = None
    readers: int = 0


@dataclass
class Order:
    """Which group follows: the one that came the last time after the same two groups with gradients on or off."""

    count: int
    seen: dict[tuple[int | None, int, bool], int] = field(default_factory=dict)

    def learn(self, before: int | None, now: int, grad: bool, following: int) -> None:
        """Remember which group followed."""
        self.seen[before, now, grad] = following

    def after(self, before: int | None, now: int, grad: bool) -> int:
        """The group expected next; if nothing is known yet, the neighbour in the direction of the last move."""
        known = self.seen.get((before, now, grad))
        if known is not None:
            return known
        if before is not None and now < before:
            return max(0, now - 1)
        if now + 1 < self.count:
            return now + 1
        return max(0, now - 1) if grad else 0  # after the last group backward begins, or a new pass without gradients


class Ring:
    """Gives weights on the device by name. ``copied`` counts the bytes transferred, ``missed`` the wrong guesses.

    With ``ahead`` the group that is expected next is fetched as soon as one comes into use. Weights may be read in any
    order and in passes of any kind: a wrong guess costs a wait, never a wrong value. Only one thread may use a ring.
    """

    def __init__(self, groups: Sequence[Group], transfers: Direct, slots: int = 2, ahead: bool = True):
        self.groups, self.transfers, self.ahead = list(groups), transfers, ahead
        self.where = {name: number for number, group in enumerate(groups) for name in group.pieces}
        largest = max(group.size for group in groups)
        buffers = [transfers.empty(largest) for _ in range(min(slots, len(groups)))]
        begin = transfers.mark()  # kernels started earlier may still read what was in this memory before
        self.slots = [_Slot(buffer, free=begin) for buffer in buffers]
        self.order = Order(len(groups))
        self.before: int | None = None
        self.now: int | None = None
        self.grad = False
        self.copied = self.missed = 0

    @contextmanager
    def read(self, name: str) -> Iterator[list[Tensor]]:
        """The tensors of a weight on the device, valid inside the block only."""
        number = self.where[name]
        slot = self._holding(number)
        slot.readers += 1
        try:
            if number != self.now:
                self._step_to(number)
            self.transfers.wait(slot.arrival)
            yield [piece.of(slot.buffer) for piece in self.groups[number].pieces[name]]
        finally:
            slot.readers -= 1
            slot.free = self.transfers.mark()

    def _step_to(self, number: int) -> None:
        if self.now is not None:
            self.order.learn(self.before, self.now, self.grad, number)
        self.before, self.now, self.grad = self.now, number, _has_gradients()
        if self.ahead:
            self._fetch(self.order.after(self.before, number, self.grad))

    def _holding(self, number: int) -> _Slot:
        """The slot with that group, fetched now if it is not in the ring."""
        slot = next((slot for slot in self.slots if slot.group == number), None)
        if slot is None:
            self.missed += 1
            slot = self._fetch(number)
        if slot is None:
            raise RuntimeError("every buffer of the ring is being read")  # weights are read one at a time
        self.slots.remove(slot)
        self.slots.append(slot)  # the slot used last is overwritten last
        return slot

    def _fetch(self, number: int) -> _Slot | None:
        """Start copying a group into the free buffer unused for longest; None if every buffer is being read."""
        held = next((slot for slot in self.slots if slot.group == number), None)
        if held is not None:
            return held
        slot = next((slot for slot in self.slots if not slot.readers), None)
        if slot is None:
            return None
        slot.group = None  # if the copy fails, the buffer holds nothing
        group = self.groups[number]
        slot.arrival = group.fetch(self.transfers, slot.buffer, slot.free)
        slot.group = number
        self.copied += group.size
        return slot

    def close(self) -> None:
        """Wait for transfers to end and free the buffers."""
        self.transfers.finish()
        self.slots.clear()
