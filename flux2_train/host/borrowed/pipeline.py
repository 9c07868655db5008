"""Units of a step in flight over several cards: while a card computes for one unit, the others compute for others.

A unit is a forward pass and its backward pass. Each runs in a thread, as many at a time as there are cards. It computes
on one card after the other, and on a card there is one unit at a time, so nothing that belongs to a card is used by two
threads. Where a unit goes to another card its graph is cut, and the backward pass goes over the cuts from Python: no
thread of autograd ever waits for a card.

On each card the backward passes run in the order of the units. So gradients are added up in the same order as when one
unit follows the other, which gives the same bits. Forward passes may overtake: they change nothing. A card that becomes
free takes a backward pass if one may run, else the forward pass of the unit that began first. That is 1F1B (Narayanan
et al. 2019), without a table of who does what when.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from ..system.memory import is_out_of_memory

T = TypeVar("T")
TICK = 0.2  # seconds; Windows lets Ctrl-C interrupt no longer wait
_of_thread = threading.local()


class Stopped(BaseException):
    """Raised in a unit because another one has failed."""


class Lanes:
    """Which unit computes on which of the cards, with at ``most`` so many units at a time.

    A pass with gradients enters a card only if fewer units keep activations there than there are cards from this one
    on: the card before the last keeps those of two units, the last those of one.
    """

    def __init__(self, cards: Sequence[torch.device], most: int):
        self.cards, self.most = tuple(cards), most
        self.changed = threading.Condition()
        self.held: dict[torch.device, int] = {}  # the unit that computes there
        self.turn = dict.fromkeys(cards, 0)  # the unit whose backward pass is the next one on each card
        # By unit: the card it waits for, whether to go backward, and the turn that must have come there.
        self.waiting: dict[int, tuple[torch.device, bool, int]] = {}
        self.failed = False
        self.started = False  # whether all threads run; no unit begins before
        self.ended = 0  # threads that compute nothing any more

    def start(self) -> None:
        """Let the units begin."""
        with self.changed:
            self.started = True
            self.changed.notify_all()

    def end(self) -> None:
        """A thread computes nothing any more."""
        with self.changed:
            self.ended += 1
            self.changed.notify_all()

    def wait_for_end(self, threads: int) -> None:
        """Wait until so many threads have ended."""
        with self.changed:
            while self.ended < threads:
                self.changed.wait(TICK)

    def forward(self, unit: int, old: torch.device | None, new: torch.device, gradients: bool) -> None:
        """Let go of one card and wait for another. Raises Stopped if a unit has failed."""
        kept = min(self.most, len(self.cards) - self.cards.index(new))
        self._move(unit, old, (new, False, unit - kept + 1 if gradients else 0))

    def backward(self, unit: int, old: torch.device | None, new: torch.device) -> None:
        """The same to go backward, which waits until all units before have done so on that card."""
        self._move(unit, old, (new, True, unit))

    def leave(self, old: torch.device | None) -> None:
        """Let go of a card."""
        with self.changed:
            self.held.pop(old, None)
            self._grant()

    def done(self, card: torch.device) -> None:
        """The backward pass whose turn it was on a card is complete."""
        with self.changed:
            self.turn[card] += 1
            self._grant()

    def fail(self) -> None:
        """Stop all units: each raises Stopped where it next enters a card."""
        with self.changed:
            self.failed = True
            self.changed.notify_all()

    def until(self, ready: Callable[[], bool]) -> None:
        """Wait until another unit has done something, after which it calls ``tell``. Hold no card meanwhile."""
        with self.changed:
            self._wait_for(ready)

    def tell(self) -> None:
        """Have the others look whether they still wait."""
        with self.changed:
            self.changed.notify_all()

    def require_no_failure(self) -> None:
        """Raise Stopped if a unit has failed."""
        if self.failed:
            raise Stopped

    def _wait_for(self, ready: Callable[[], bool]) -> None:
        self.changed.wait_for(lambda: self.failed or ready())
        self.require_no_failure()

    def _move(self, unit: int, old: torch.device | None, wanted: tuple[torch.device, bool, int]) -> None:
        with self.changed:
            self.held.pop(old, None)
            self.waiting[unit] = wanted
            self._grant()
            self._wait_for(lambda: unit not in self.waiting)

    def _grant(self) -> None:
        for card in self.cards:
            if card not in self.held:
                ready = [(not backward, unit) for unit, (wanted, backward, turn) in self.waiting.items()
                         if wanted == card and turn <= self.turn[card]]  # fmt: skip
                if ready:
                    self.held[card] = min(ready)[1]
                    del self.waiting[self.held[card]]
        self.changed.notify_all()


class _End(torch.autograd.Function):
    """The end of a unit's graph on a card: a number whose backward begins with the gradients that were handed back."""

    @staticmethod
    def forward(ctx, grads: list[Tensor | None], *streams: Tensor) -> Tensor:
        ctx.grads = grads
        return streams[0].new_zeros(())

    @staticmethod
    def backward(ctx, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.grads


class _Begin(torch.autograd.Function):
    """The begin of a unit's graph on the next card: copies of the streams. Backward hands their gradients back."""

    @staticmethod
    def forward(ctx, grads: list[Tensor | None], card: torch.device, _: Tensor, *streams: Tensor) -> tuple[Tensor, ...]:
        ctx.grads, ctx.cards = grads, [stream.device for stream in streams]
        ctx.set_materialize_grads(False)
        return tuple(stream.to(card) for stream in streams)

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[None, ...]:
        ctx.grads[:] = [None if g is None else g.to(card) for g, card in zip(grads, ctx.cards, strict=True)]
        return (None,) * (3 + len(grads))


class Unit:
    """One forward pass and its backward pass, in the thread that computes them."""

    def __init__(self, lanes: Lanes, number: int):
        self.lanes, self.number = lanes, number
        self.card: torch.device | None = None
        self.cuts: dict[torch.device, list[tuple[Tensor, list[Tensor | None]]]] = {card: [] for card in lanes.cards}

    def enter(self, card: torch.device) -> None:
        """Wait until this unit may compute on a card. It lets go of the one before."""
        if card == self.card:
            self.lanes.require_no_failure()
            return
        before, self.card = self.card, None
        self.lanes.forward(self.number, before, card, torch.is_grad_enabled())
        self.card = card

    def cut(self, card: torch.device, *streams: Tensor) -> tuple[Tensor, ...]:
        """Copies of the streams of this card on another one. ``backward`` goes on from their gradients."""
        grads: list[Tensor | None] = []
        self.cuts[self.card].append((_End.apply(grads, *streams), grads))
        begin = torch.zeros((), requires_grad=True)  # nothing else tells autograd that the copies need gradients
        return _Begin.apply(grads, card, begin, *(stream.detach() for stream in streams))

    def backward(self, start: Callable[[], None]) -> None:
        """Go back over the cards. ``start`` runs the backward pass of the loss, which lies on the last card."""
        for card in reversed(self.lanes.cards):
            before, self.card = self.card, None
            self.lanes.backward(self.number, before, card)
            self.card = card
            ends = [end for end, grads in self.cuts.pop(card) if any(g is not None for g in grads)]
            if card == self.lanes.cards[-1]:
                start()
            elif ends:
                torch.autograd.backward(ends)
            self.lanes.done(card)
        self.leave()

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Wait for what another unit computes, which then calls ``lanes.tell``."""
        card = self.card
        self.leave()
        self.lanes.until(ready)
        if card is not None:
            self.enter(card)

    def leave(self) -> None:
        """Let go of the card."""
        before, self.card = self.card, None
        self.lanes.leave(before)


def unit() -> Unit | None:
    """The unit that the calling thread computes, if any."""
    return getattr(_of_thread, "unit", None)


def enter(card: torch.device) -> None:
    """In a unit: wait until it may compute on a card."""
    own = unit()
    if own is not None:
        own.enter(card)


def current(card: torch.device) -> AbstractContextManager:
    """Kernels that are not torch's own start on the current card, wherever their tensors lie."""
    return torch.cuda.device(card) if card.type == "cuda" else nullcontext()


def backward(start: Callable[[], None]) -> None:
    """Run the backward pass that ``start`` begins, in a unit over all of its cards."""
    own = unit()
    if own is None:
        start()
    else:
        own.backward(start)


class _Claim:
    """Stands for a value that a unit is computing."""


def once(values: dict[str, T], name: str, compute: Callable[[], T]) -> T:
    """The value of that name, from ``compute`` if it is not there yet. If another unit computes it, wait for that."""
    own = unit()
    if own is None:
        if name not in values:
            values[name] = compute()
        return values[name]
    claim = _Claim()
    if values.setdefault(name, claim) is claim:
        values[name] = compute()
        own.lanes.tell()
    else:
        own.wait_for(lambda: not isinstance(values[name], _Claim))
    return values[name]


def in_flight(cards: Sequence[torch.device], jobs: Sequence[Callable[[], T]], most: int) -> list[T]:
    """What the jobs return, each of which is a unit. They begin in their order, at most so many at a time.

    If one raises an error, the others stop, and that error is raised when all threads have ended. Out of memory is only
    raised if there is no other error: whoever repeats the step must not overhear that the user has cancelled.
    """
    lanes, units = Lanes(cards, most), enumerate(jobs)  # the threads share it: each takes the next unit
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def work() -> None:
        try:
            lanes.until(lambda: lanes.started)
            with torch.inference_mode(False), torch.enable_grad(), current(cards[0]):
                for number, job in units:
                    results[number] = _run(Unit(lanes, number), job)
        except BaseException as error:
            if not isinstance(error, Stopped):
                errors.append(error)
            lanes.fail()
        finally:
            lanes.end()

    _run_threads([threading.Thread(target=work, daemon=True) for _ in range(most)], lanes)
    if not errors:
        return [results[number] for number in range(len(jobs))]
    error = min(errors, key=is_out_of_memory)
    errors.clear()  # the error's own frames hold this list, and they hold the tensors of the step
    try:
        raise error
    finally:
        del error


def _run(own: Unit, job: Callable[[], T]) -> T:
    _of_thread.unit = own
    try:
        return job()
    finally:
        _of_thread.unit = None
        own.leave()


def _run_threads(threads: list[threading.Thread], lanes: Lanes) -> None:
    """Run to the end of all, also if this thread is interrupted meanwhile.

    After an interrupted ``join`` Python 3.11 takes a thread that still runs for one that has ended. So threads say
    themselves that they end. If the interruption comes while they start, no unit begins, and nobody has to wait.
    """
    try:
        for thread in threads:
            thread.start()
        lanes.start()
        lanes.wait_for_end(len(threads))
        for thread in threads:
            thread.join()
    except BaseException:
        lanes.fail()
        if lanes.started:
            lanes.wait_for_end(len(threads))
        raise
