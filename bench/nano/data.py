"""Training batches, drawn on the fly; a batch depends on (seed, step) alone, so a resumed run sees the same ones."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flux2_train.nano.autoencoder import PatchAutoencoder

from .world import scenes, words
from .world.edits import random_edit

BATCH, EDITS = 16, 10
EMPTY_SHARE = 0.1  # captions dropped, for classifier-free guidance
CYCLE = ("square", "wide", "tall") * 5 + ("edit",) * 3


@dataclass
class Batch:
    """Latents (B, 128, h, w), captions, and the reference latents of an edit."""

    latents: Tensor
    captions: list[str]
    reference: Tensor | None = None


def batch(seed: int, step: int, autoencoder: PatchAutoencoder) -> Batch:
    """The batch of a step: square, wide and tall pictures with captions by equal shares, a sixth edits."""
    rng = random.Random(f"{seed}/{step}")
    kind = rng.choice(CYCLE)
    if kind == "edit":
        return _edits(rng, autoencoder)
    size = scenes.SIZES[("square", "wide", "tall").index(kind)]
    specs = [scenes.random_spec(rng) for _ in range(BATCH)]
    pictures = [scenes.draw(spec, size) for spec in specs]
    captions = [_maybe_empty(words.caption(spec, rng), rng) for spec in specs]
    return Batch(autoencoder.encode(to_pixels(pictures)), captions)


def to_pixels(pictures: list[np.ndarray]) -> Tensor:
    """Pictures (H, W, 3) in [0, 1] to (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1


def to_pictures(pixels: Tensor) -> list[np.ndarray]:
    """(B, 3, H, W) in [-1, 1] to pictures (H, W, 3) in [0, 1]."""
    return list((pixels.permute(0, 2, 3, 1) * 0.5 + 0.5).clamp(0, 1).numpy())


def _edits(rng: random.Random, autoencoder: PatchAutoencoder) -> Batch:
    triples = [random_edit(rng, words.Words(rng)) for _ in range(EDITS)]
    before, after = (to_pixels([scenes.draw(t[i], scenes.SIZES[0]) for t in triples]) for i in (0, 2))
    captions = [_maybe_empty(instruction, rng) for _, instruction, _ in triples]
    return Batch(autoencoder.encode(after), captions, autoencoder.encode(before))


def _maybe_empty(caption: str, rng: random.Random) -> str:
    return "" if rng.random() < EMPTY_SHARE else caption
