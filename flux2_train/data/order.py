"""In which order samples are seen: seeded, bucket by bucket, every sample once per repeat and epoch."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator

from .cache import Samples


def epoch_batches(samples: Samples, batch: int, repeats: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of one epoch in batches of equal latent shape; the last batch of a shape may be smaller."""
    rng = random.Random(f"{seed}/{epoch}")
    by_shape = defaultdict(list)
    for index in range(len(samples)):
        by_shape[samples.shape(index)] += [index] * repeats
    batches = []
    for _, indices in sorted(by_shape.items()):
        rng.shuffle(indices)
        batches += [indices[i : i + batch] for i in range(0, len(indices), batch)]
    rng.shuffle(batches)
    return batches


def batches(samples: Samples, batch: int, repeats: int, seed: int, steps: int, epochs: int) -> Iterator[list[int]]:
    """``steps`` batches, or those of ``epochs`` epochs where ``steps`` is 0."""
    epoch, done = 0, 0
    while done < steps if steps else epoch < epochs:
        for indices in epoch_batches(samples, batch, repeats, seed, epoch):
            if steps and done == steps:
                return
            yield indices
            done += 1
        epoch += 1


def step_count(samples: Samples, batch: int, repeats: int, steps: int, epochs: int) -> int:
    """How many batches ``batches`` will give."""
    return steps or epochs * len(epoch_batches(samples, batch, repeats, 0, 0))
