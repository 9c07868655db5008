"""A borrowed model whose blocks lie on several cards: what enters a block is handed over to the block's card.

Autograd hands the gradients back the same way; in a unit of ``pipeline`` the graph is cut there. Modulations and rotary
embeddings are the same for many blocks and have no gradient, because nothing outside of blocks is trained: a pass takes
them along from card to card. The last layer lies on the last card, so that a unit's loss does not wait for the first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...planning.cards import LAST, ranges
from .pipeline import current, enter, unit
from .recompute import STREAMS
from .routing import KEY, TokenRouting

OPTIONS = "transformer_options"


@dataclass(frozen=True)
class Cards:
    """The cards of a run, ComfyUI's own first, and how many blocks lie on each."""

    devices: tuple[torch.device, ...]
    counts: tuple[int, ...]

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return len(self.devices) > 1

    @property
    def others(self) -> dict[torch.device, range]:
        """The numbers of the blocks on each card but the first."""
        return dict(list(zip(self.devices, ranges(self.counts), strict=True))[1:])

    def of_block(self, number: int) -> torch.device:
        """The card of a block; double and single blocks are numbered together."""
        return next(card for card, own in zip(self.devices, ranges(self.counts), strict=True) if number in own)

    def of_layer(self, name: str, double: int) -> torch.device:
        """The card of a Linear, by its dotted name, in a model with so many ``double`` blocks."""
        if "_blocks." in name:
            return self.of_block(block_number(name, double))
        return self.devices[-1 if name.startswith(LAST) else 0]


def block_number(name: str, double: int) -> int:
    """The number of the block that a dotted name begins with; double and single blocks are numbered together."""
    kind, number = name.split(".")[:2]
    return int(number) + (double if kind == "single_blocks" else 0)


class HandOver(torch.autograd.Function):
    """Tensors copied to another card, and their gradients copied back.

    All streams of a block at once, so that backward on the card before begins when all gradients are there.
    """

    @staticmethod
    def forward(ctx, card: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.cards = [tensor.device for tensor in tensors]
        ctx.set_materialize_grads(False)
        return tuple(tensor.to(card) for tensor in tensors)

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *(None if g is None else g.to(card) for g, card in zip(grads, ctx.cards, strict=True))


def handed_over(tensors: list[Tensor], card: torch.device) -> list[Tensor]:
    """The tensors on a card; those that are there already are returned as they are."""
    own = unit()
    over = partial(HandOver.apply, card) if own is None else partial(own.cut, card)
    traced = [t for t in tensors if t.device != card and t.requires_grad and torch.is_grad_enabled()]
    copies = dict(zip(map(id, traced), over(*traced) if traced else (), strict=True))
    return [copies[id(t)] if id(t) in copies else t.to(card) for t in tensors]


class _Copies(threading.local):
    """What blocks share in the pass of a thread, by the original's id: the original, which keeps its id, and a copy."""

    def __init__(self):
        self.of: dict[int, tuple[Tensor, Tensor]] = {}


class Passing:
    """Runs the blocks and the last layer of a model where they lie. A thread runs one pass of the model at a time."""

    def __init__(self, cards: Cards):
        self.cards, self.copies = cards, _Copies()

    def begin(self, run: Callable, vector: Tensor):
        """``run`` what makes modulations of a pass's ``vector``, which the last layer wants, too: it goes along."""
        self.clear()
        self.copies.of[id(vector)] = vector, vector
        return run(vector)

    def block(self, number: int, run: Callable, *args, **kwargs):
        """``run`` a block on its card."""
        return self._run(self.cards.of_block(number), run, args, kwargs)

    def last(self, run: Callable, *args, **kwargs):
        """``run`` what follows the blocks, on the last card. There the output stays for a unit's loss."""
        try:
            output = self._run(self.cards.devices[-1], run, args, kwargs)
        finally:
            self.clear()
        return output if unit() else handed_over([output], self.cards.devices[0])[0]

    def clear(self) -> None:
        """Let go of what the last pass has copied."""
        self.copies.of.clear()

    def _run(self, card: torch.device, run: Callable, args: tuple, kwargs: dict):
        try:
            # Copied before the unit enters the card: a copy waits for what the card before has begun, and that should
            # not be another unit's.
            args, kwargs = self._on(card, args, kwargs)
            enter(card)
            with current(card):
                return run(*args, **kwargs)
        except BaseException:
            self.clear()
            raise

    def _on(self, card: torch.device, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The arguments on a card. Streams belong to the block alone; what else there is, other blocks get as well."""
        options = {OPTIONS: kwargs[OPTIONS]} if OPTIONS in kwargs else {}
        own = {name: kwargs[name] for name in STREAMS if name in kwargs}
        shared = {name: value for name, value in kwargs.items() if name not in own and name != OPTIONS}
        routing: TokenRouting | None = options.get(OPTIONS, {}).get(KEY)
        waiting = [] if routing is None or routing.skipping is None else [routing.skipping]
        streams = [*waiting, *_tensors((args[:1], own))]
        new = {id(old): now for old, now in zip(streams, handed_over(streams, card), strict=True)}
        for tensor, _ in list(self.copies.of.values()):
            self._shared(tensor, card)
        new |= {id(tensor): self._shared(tensor, card) for tensor in _tensors((shared, args[1:]))}
        if routing is not None:
            routing.move(card, new[id(routing.skipping)] if waiting else None)
        return _changed(args, new), {**_changed(own | shared, new), **options}

    def _shared(self, tensor: Tensor, card: torch.device) -> Tensor:
        """A copy on the card, the same one for all of its blocks: of the copy on the card before."""
        _, copy = self.copies.of.get(id(tensor), (tensor, tensor))
        if copy.device != card:
            copy = copy.to(card)
        self.copies.of[id(tensor)] = tensor, copy
        return copy


def _tensors(value) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, dictionaries and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
    elif is_dataclass(value):
        yield from _tensors(tuple(getattr(value, field.name) for field in fields(value)))


def _changed(value, new: dict[int, Tensor]):
    """The same with tensors replaced by those in ``new``, by id."""
    if isinstance(value, Tensor):
        return new.get(id(value), value)
    if isinstance(value, dict):
        return {name: _changed(each, new) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_changed(each, new) for each in value)
    if is_dataclass(value):
        return replace(value, **{field.name: _changed(getattr(value, field.name), new) for field in fields(value)})
    return value
