"""One model over several cards: which blocks lie on which, and what each card then has to do.

The blocks of a card follow each other. What comes before the blocks lies on the first card, the last layer on the last
card, which also computes the loss. Where a step consists of several passes with gradients, these may be in flight:
while a card computes for one of them, the others compute for others. Otherwise one card works at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from .layout import Layout
from .weights import Weights
from .work import Work

LAST = "final_layer."  # what the names of the last layer's Linears begin with


def split(sizes: Sequence[int], outside: int, free: Sequence[float]) -> tuple[int, ...]:
    """How many blocks each card gets, so that its bytes are about its share of the ``free`` bytes of all cards.

    ``sizes``: bytes of each block; ``outside``: bytes outside of blocks, counted on the first card. Every card gets a
    block at least, so there may not be more cards than blocks.
    """
    counts: list[int] = []
    held, goal, total = float(outside), 0.0, outside + sum(sizes)
    for card, own in enumerate(free):
        goal += total * own / sum(free)
        first, last = sum(counts), len(sizes) - (len(free) - 1 - card)  # each card after this one needs a block, too
        block = first
        while block < last and (card == len(free) - 1 or block == first or held + sizes[block] / 2 <= goal):
            held += sizes[block]
            block += 1
        counts.append(block - first)
    return tuple(counts)


def ranges(counts: Sequence[int]) -> list[range]:
    """The numbers of each card's blocks; double and single blocks are numbered together."""
    return [range(sum(counts[:card]), sum(counts[: card + 1])) for card in range(len(counts))]


@lru_cache(maxsize=16)
def works(work: Work) -> tuple[Work, ...]:
    """What each card does of ``work``, which is split as its ``cards`` say."""
    count = len(work.cards)
    return tuple(_part(work, own, not card, card == count - 1) for card, own in enumerate(ranges(work.cards)))


def layouts(work: Work, layout: Layout) -> Iterator[Layout]:
    """The layout as each card sees it, whose blocks are numbered from 0.

    In flight are as many passes as there are cards from this one on, at most: ``host.borrowed.pipeline`` keeps to that.
    """
    for card, blocks in enumerate(ranges(work.cards)):
        own = tuple(number - blocks.start for number in layout.streamed if number in blocks)
        yield replace(layout, streamed=own, in_flight=min(layout.in_flight, len(work.cards) - card))


def passes(work: Work, rounds: int) -> float:
    """How many passes with gradients a step consists of, on average, if the model runs in so many ``rounds``."""
    return work.passes.trained * rounds


def seconds(each: Sequence[float], passes: float, in_flight: int) -> float:
    """Seconds per step of cards that compute for so long ``each``, in so many ``passes`` with gradients.

    One after the other that is the sum. In flight, the first pass takes its way over all cards, and each of the others
    is done one turn later: that of the slowest card, or longer if too few are in flight to keep it busy. So S cards
    with equal shares and as many of M passes in flight take (M + S - 1) / M times the share of one.
    """
    passes, way = max(1.0, passes), sum(each) / max(1.0, passes)
    turn = way if in_flight == 1 else max(max(each) / passes, way / in_flight)
    return way + (passes - 1) * turn


def _part(work: Work, blocks: range, first: bool, last: bool) -> Work:
    names = _names(work.weights, blocks, first, last)
    sites = {new: work.sites[old] for old, new in names.items() if old in work.sites}
    share = sum(parameters for _, parameters in sites.values()) / max(1, work.parameters)
    painting = {} if first else {"decoding": 0}
    return replace(
        work, weights=_weights(work.weights, blocks, names), sites=sites, cards=(), edges=round(share * work.edges),
        begun=round(share * work.begun), optimizer_state=round(share * work.optimizer_state),
        routes=tuple((start - blocks.start, end - blocks.start, ratio) for start, end, ratio in work.routes),
        **painting,
    )  # fmt: skip


def _names(weights: Weights, blocks: range, first: bool, last: bool) -> dict[str, str]:
    """The Linears on a card, with the names that they have there: of its blocks, and on the ``first`` and the ``last``
    card those before and behind all blocks."""
    own = [weights.blocks[number] for number in blocks]
    double = sum(block.startswith("double") for block in own)
    renamed = {old: new for old, new in zip(own, _numbered(double, len(own) - double), strict=True)}
    found = {}
    for name in weights.linears:
        block = ".".join(name.split(".")[:2]) if "_blocks." in name else ""
        if block in renamed:
            found[name] = renamed[block] + name.removeprefix(block)
        elif not block and (last if name.startswith(LAST) else first):
            found[name] = name
    return found


def _numbered(double: int, single: int) -> list[str]:
    return [f"double_blocks.{n}" for n in range(double)] + [f"single_blocks.{n}" for n in range(single)]


def _weights(weights: Weights, blocks: range, names: dict[str, str]) -> Weights:
    double = len([number for number in blocks if number < weights.double])
    return replace(
        weights, double=double, single=len(blocks) - double,
        linears={new: weights.linears[old] for old, new in names.items()},
        stored={new: weights.stored[old] for old, new in names.items()},
        plain=frozenset(new for old, new in names.items() if old in weights.plain),
    )  # fmt: skip
