"""Training batches, drawn on the fly; a batch depends on (seed, step) alone, so a resumed run sees the same ones."""

import random
from dataclasses import dataclass

import numpy as np
import torch

from . import scenes
from .autoencoder import PatchAutoencoder
from .render import draw

BATCH = 16
EMPTY_SHARE = 0.1  # captions dropped, for classifier-free guidance
OPEN_SHARE = 0.1  # captions without the background, and captions without the place
CYCLE = ("text",) * 9 + ("wide", "tall") * 3 + ("edit",) * 5


@dataclass
class Batch:
    """Latents (B, 128, h, w), captions, and the reference latents of an edit."""

    latents: torch.Tensor
    captions: list[str]
    reference: torch.Tensor | None = None


def batch(seed: int, step: int, autoencoder: PatchAutoencoder) -> Batch:
    """The batch of a step: square pictures with captions, wide and tall ones, a quarter edits."""
    rng = random.Random(f"{seed}/{step}")
    kind = rng.choice(CYCLE)
    if kind == "edit":
        return _edits(rng, autoencoder, BATCH * 2 // 3)
    shape = scenes.SIZES[{"text": 0, "wide": 1, "tall": 2}[kind]]
    specs = [scenes.random_spec(rng) for _ in range(BATCH)]
    pictures = [draw(scenes.lay_out(spec, shape, rng)) for spec in specs]
    captions = [
        _maybe_empty(scenes.caption(spec, rng.random() > OPEN_SHARE, rng.random() > OPEN_SHARE), rng) for spec in specs
    ]
    return Batch(autoencoder.encode(to_pixels(pictures)), captions)


def edit_pair(rng: random.Random) -> tuple[np.ndarray, str, np.ndarray]:
    """(before, instruction, after): the pictures share their layout, so that only the named thing changes."""
    before, instruction, after = scenes.random_edit(rng)
    layout = rng.random()
    first, second = (draw(scenes.lay_out(spec, scenes.SIZES[0], random.Random(layout))) for spec in (before, after))
    return first, instruction, second


def to_pixels(pictures: list[np.ndarray]) -> torch.Tensor:
    """Pictures (H, W, 3) in [0, 1] to (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1


def to_pictures(pixels: torch.Tensor) -> list[np.ndarray]:
    """(B, 3, H, W) in [-1, 1] to pictures (H, W, 3) in [0, 1]."""
    return list((pixels.permute(0, 2, 3, 1) * 0.5 + 0.5).clamp(0, 1).numpy())


def _edits(rng: random.Random, autoencoder: PatchAutoencoder, size: int) -> Batch:
    before, words, after = zip(*(edit_pair(rng) for _ in range(size)), strict=True)
    return Batch(
        autoencoder.encode(to_pixels(list(after))),
        [_maybe_empty(w, rng) for w in words],
        autoencoder.encode(to_pixels(list(before))),
    )


def _maybe_empty(caption: str, rng: random.Random) -> str:
    return "" if rng.random() < EMPTY_SHARE else caption
