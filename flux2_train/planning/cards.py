"""One model over several cards: which blocks lie on which, and what each card then has to do.

The blocks of a card follow each other. Everything outside of blocks lies on the first card, which also computes the
loss. One card works at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from .layout import Layout
from .weights import Weights
from .work import Work


def split(sizes: Sequence[int], outside: int, free: Sequence[float]) -> tuple[int, ...]:
    """How many blocks each card gets, so that its bytes are about its share of the ``free`` bytes of all cards.

    ``sizes``: bytes of each block; ``outside``: bytes that the first card holds beside. Every card gets a block at
    least, so there may not be more cards than blocks.
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
    return tuple(_part(work, blocks, first=not card) for card, blocks in enumerate(ranges(work.cards)))


def layouts(work: Work, layout: Layout) -> Iterator[Layout]:
    """The layout as each card sees it, whose blocks are numbered from 0."""
    for blocks in ranges(work.cards):
        own = tuple(number - blocks.start for number in layout.streamed if number in blocks)
        yield replace(layout, streamed=own)


def _part(work: Work, blocks: range, first: bool) -> Work:
    names = _names(work.weights, blocks, first)
    sites = {new: work.sites[old] for old, new in names.items() if old in work.sites}
    share = sum(parameters for _, parameters in sites.values()) / max(1, work.parameters)
    painting = {} if first else {"decoding": 0}
    return replace(
        work, weights=_weights(work.weights, blocks, names), sites=sites, cards=(), edges=round(share * work.edges),
        begun=round(share * work.begun), optimizer_state=round(share * work.optimizer_state),
        routes=tuple((start - blocks.start, end - blocks.start, ratio) for start, end, ratio in work.routes),
        **painting,
    )  # fmt: skip


def _names(weights: Weights, blocks: range, first: bool) -> dict[str, str]:
    """The Linears of these blocks, and on the first card those outside of blocks, each with its name on the card."""
    own = [weights.blocks[number] for number in blocks]
    double = sum(block.startswith("double") for block in own)
    renamed = {old: new for old, new in zip(own, _numbered(double, len(own) - double), strict=True)}
    found = {}
    for name in weights.linears:
        block = ".".join(name.split(".")[:2]) if "_blocks." in name else ""
        if block in renamed:
            found[name] = renamed[block] + name.removeprefix(block)
        elif not block and first:
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
