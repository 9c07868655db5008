"""The order in which samples are seen: from a seed, in batches of one bucket, each sample once per repeat and epoch."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from .samples import Sample, Samples

AHEAD = 2  # batches that are read while one is trained on


def epoch_batches(samples: Samples, batch: int, seed: int, epoch: int, times: int = 1) -> list[list[int]]:
    """Indices of one epoch in batches of equal latent shape; the last batch of a shape may be smaller.

    A step takes ``batch`` images, or ``times`` those of a folder that has a batch of its own.
    Regularisation images and others never share a batch. Images whose references have equal shapes are put into the
    same batch where possible, because the model can then compute them together.
    """
    rng = random.Random(f"{seed}/{epoch}")
    groups = defaultdict(list)
    for index in _seen(samples, seed, epoch):
        groups[samples.group(index)].append(index)
    batches = []
    for (*_, own), indices in sorted(groups.items()):
        rng.shuffle(indices)
        indices.sort(key=samples.shape)
        size = own * times or batch
        batches += [indices[i : i + size] for i in range(0, len(indices), size)]
    rng.shuffle(batches)
    return batches


def _seen(samples: Samples, seed: int, epoch: int) -> list[int]:
    """Indices of the items that an epoch sees: ``repeats`` times each folder's, and of these its ``probability``.

    An item that has ``repeats`` of its own counts that many times more. Folders with a ``balance`` together give as
    many as they have, each its share of them.
    """
    sources = list(enumerate(samples.sources))
    items = list(enumerate(samples.items))
    owns = {n: [i for i, item in items if item.source == n for _ in range(s.repeats * item.repeats)]
            for n, s in sources}  # fmt: skip
    balanced = {n: s.balance for n, s in sources if s.balance and owns[n]}
    together = sum(len(owns[n]) for n in balanced)
    seen = []
    for number, source in sources:
        own, count = owns[number], round(source.probability * len(owns[number]))
        if number in balanced:
            count = round(together * balanced[number] / sum(balanced.values()))
        seen += own if count == len(own) else _share(own, max(1, count), f"{seed}/{number}", epoch)
    return seen


def _share(indices: list[int], count: int, seed: str, epoch: int) -> list[int]:
    """``count`` of ``indices``, continuing where the last epoch ended: in the long run all come equally often."""
    shuffled: dict[int, list[int]] = {}

    def at(place: int) -> int:
        turn, position = divmod(place, len(indices))
        if turn not in shuffled:
            shuffled[turn] = indices.copy()
            random.Random(f"{seed}/{turn}").shuffle(shuffled[turn])
        return shuffled[turn][position]

    return sorted(at(place) for place in range(epoch * count, (epoch + 1) * count))


def batches(samples: Samples, batch: int, seed: int, steps: int, epochs: int, times: int = 1) -> Iterator[list[int]]:
    """``steps`` batches, or those of ``epochs`` epochs where ``steps`` is 0."""
    epoch, done = 0, 0
    while done < steps if steps else epoch < epochs:
        for indices in epoch_batches(samples, batch, seed, epoch, times):
            if steps and done == steps:
                return
            yield indices
            done += 1
        epoch += 1


def step_count(samples: Samples, batch: int, steps: int, epochs: int, times: int = 1) -> int:
    """How many batches ``batches`` will give."""
    if steps or all(source.probability == 1 and not source.balance for source in samples.sources):
        return steps or epochs * len(epoch_batches(samples, batch, 0, 0, times))
    return sum(len(epoch_batches(samples, batch, 0, epoch, times)) for epoch in range(epochs))


def drawn(samples: Samples, order: Iterable[list[int]], seed: int, first: int = 1) -> Iterator[list[Sample]]:
    """The batches of ``order`` with captions and references drawn; ``AHEAD`` of them are read in the background.

    ``first`` is the number of the first step: what a step draws depends only on its number and ``seed``.
    """

    def read(step: int, indices: list[int]) -> list[Sample]:
        return [samples.draw(i, random.Random(f"{seed}/{step}/{place}")) for place, i in enumerate(indices)]

    with ThreadPoolExecutor(1) as pool:
        coming = (pool.submit(read, step, indices) for step, indices in enumerate(order, first))
        waiting = deque(islice(coming, 1 + AHEAD))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(islice(coming, 1))
        finally:
            for future in waiting:
                future.cancel()
