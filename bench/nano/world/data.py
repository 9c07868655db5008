"""Training batches of the world, drawn on the fly; a batch depends on (seed, step) alone."""

from __future__ import annotations

import random

from flux2_train.nano.autoencoder import PatchAutoencoder

from .. import data
from . import scenes, words
from .edits import random_edit

BATCH, EDITS = 16, 10
EMPTY_SHARE = 0.1  # captions dropped, for classifier-free guidance
CYCLE = ("square", "wide", "tall") * 5 + ("edit",) * 3


def batch(seed: int, step: int, autoencoder: PatchAutoencoder) -> data.Batch:
    """The batch of a step: square, wide and tall pictures with captions by equal shares, a sixth edits."""
    rng = random.Random(f"{seed}/{step}")
    kind = rng.choice(CYCLE)
    if kind == "edit":
        return _edits(rng, autoencoder)
    size = scenes.SIZES[("square", "wide", "tall").index(kind)]
    specs = [scenes.random_spec(rng) for _ in range(BATCH)]
    pictures = [scenes.draw(spec, size) for spec in specs]
    return data.Batch(
        autoencoder.encode(data.to_pixels(pictures)), [_maybe_empty(words.caption(s, rng), rng) for s in specs]
    )


def _edits(rng: random.Random, autoencoder: PatchAutoencoder) -> data.Batch:
    triples = [random_edit(rng, words.Words(rng)) for _ in range(EDITS)]
    before, after = (data.to_pixels([scenes.draw(t[i], scenes.SIZES[0]) for t in triples]) for i in (0, 2))
    captions = [_maybe_empty(instruction, rng) for _, instruction, _ in triples]
    return data.Batch(autoencoder.encode(after), captions, autoencoder.encode(before))


def _maybe_empty(caption: str, rng: random.Random) -> str:
    return "" if rng.random() < EMPTY_SHARE else caption
