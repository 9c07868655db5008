"""Frozen weights that stay in host memory and come to the device, group by group, just before they are used.

They need no way back, so there is one master copy and a ring of buffers on the device. While one group is in use the
next is on its way, on a stream of its own. Which is next is learned from what followed the last time: forward,
recomputation, backward and passes without gradient each have an order, and none of them has to be announced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

ALIGNMENT = 256  # bytes: what kernels read vectors from
_tracked: ContextVar[bool | None] = ContextVar("_tracked", default=None)


@contextmanager
def tracked(gradients: bool) -> Iterator[None]:
    """Say for what is read inside whether its pass has gradients.

    An autograd function's forward, in which weights are read, always runs with gradients off. Without this a training
    pass and a pass without gradients would look the same, and what follows their last group would be guessed wrong.
    """
    before = _tracked.set(gradients)
    try:
        yield
    finally:
        _tracked.reset(before)


def _has_gradients() -> bool:
    """Whether what runs now belongs to a pass with gradients: as ``tracked`` says, else as torch does."""
    said = _tracked.get()
    return torch.is_grad_enabled() if said is None else said


class Direct:
    """A device, and transfers to it that are done when they return: on a CPU, or where streams are not wanted.

    ``pins``: whether copies from pinned host memory are faster.
    """

    def __init__(self, device: torch.device):
        self.device, self.pins = device, device.type == "cuda"

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies on the device and not in host memory."""
        return tensor.device.type != "cpu"

    def to_host(self, tensor: Tensor) -> Tensor:
        """A tensor of the device, in host memory."""
        return tensor.to("cpu")

    def to_device(self, tensor: Tensor) -> Tensor:
        """A tensor of host memory, on the device. Raises the device's own error where it has no room."""
        return tensor.to(self.device)

    def empty(self, size: int) -> Tensor:
        """A buffer of so many bytes on the device, which may be written in any mode."""
        with torch.inference_mode(False):
            return torch.empty(size, dtype=torch.uint8, device=self.device)

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]], after: object) -> object:
        """Copy each (source, target) once ``after`` (of ``mark``) has passed. Returns what ``wait`` waits for."""
        for source, target in pairs:
            target.copy_(source)
        return None

    def wait(self, arrival: object) -> None:
        """What is computed from here on finds the copy done."""

    def mark(self) -> object:
        """The point that computation has reached, for ``copy`` to wait for."""
        return None

    def finish(self) -> None:
        """Return when nothing is on its way any more."""


class Streamed(Direct):
    """Transfers on a CUDA (or ROCm) stream of their own, beside what is computed."""

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
    """The best that the device has."""
    return Streamed(device) if streams and device.type == "cuda" else Direct(device)


@dataclass(frozen=True)
class _Piece:
    """A tensor in a group's buffer."""

    start: int
    size: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def of(self, buffer: Tensor) -> Tensor:
        return buffer[self.start : self.start + self.size].view(self.dtype).view(self.shape)


class Group:
    """Weights that come together: the tensors of each by name, in host memory, and where they lie in a buffer.

    They are read where they are, which may be a mapped file.
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

    def pairs(self, buffer: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(source, target) of everything that has to be copied into a buffer."""
        return [(source, buffer[start : start + source.numel()]) for source, start in self.sources]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


@dataclass(eq=False)
class _Slot:
    """A buffer: which group it holds, when that has arrived, since when it is no longer read, who is reading it."""

    buffer: Tensor
    group: int | None = None
    arrival: object = None
    free: object = None
    readers: int = 0


@dataclass
class Order:
    """What follows what: by the last two groups and whether gradients are on, the group that came next."""

    count: int
    seen: dict[tuple[int | None, int, bool], int] = field(default_factory=dict)

    def learn(self, before: int | None, now: int, grad: bool, following: int) -> None:
        """Remember what followed."""
        self.seen[before, now, grad] = following

    def after(self, before: int | None, now: int, grad: bool) -> int:
        """What will follow; where nothing is known yet, the next one in the direction of the last step."""
        known = self.seen.get((before, now, grad))
        if known is not None:
            return known
        if before is not None and now < before:
            return max(0, now - 1)
        if now + 1 < self.count:
            return now + 1
        return max(0, now - 1) if grad else 0  # backward turns round here, a pass without gradients starts again


class Ring:
    """Gives weights on the device by name. ``copied`` counts the bytes that were transferred, ``missed`` the waits.

    With ``ahead`` the group that will be needed next is fetched as soon as one comes into use. Reading is right in any
    order and from passes of any kind: a wrong guess costs a wait, never a wrong value. Not for two threads at once.
    """

    def __init__(self, groups: Sequence[Group], transfers: Direct, slots: int = 2, ahead: bool = True):
        self.groups, self.transfers, self.ahead = list(groups), transfers, ahead
        self.where = {name: number for number, group in enumerate(groups) for name in group.pieces}
        largest = max(group.size for group in groups)
        buffers = [transfers.empty(largest) for _ in range(min(slots, len(groups)))]
        begin = transfers.mark()  # what was computed before may still read what lay in this memory
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
        found = next((slot for slot in self.slots if slot.group == number), None)
        if found is None:
            self.missed += 1
            found = self._fetch(number)
        if found is None:
            raise RuntimeError("every buffer of the ring is being read")  # weights are read one at a time
        self.slots.remove(found)
        self.slots.append(found)  # the one used last is overwritten last
        return found

    def _fetch(self, number: int) -> _Slot | None:
        """Start the transfer of a group into the buffer that has not been used for longest; None if none is free."""
        held = next((slot for slot in self.slots if slot.group == number), None)
        if held is not None:
            return held
        slot = next((slot for slot in self.slots if not slot.readers), None)
        if slot is None:
            return None
        slot.group = None  # if the copy fails, the buffer holds nothing
        group = self.groups[number]
        slot.arrival = self.transfers.copy(group.pairs(slot.buffer), slot.free)
        slot.group = number
        self.copied += group.size
        return slot

    def close(self) -> None:
        """Wait for what is on its way and give the buffers back."""
        self.transfers.finish()
        self.slots.clear()
