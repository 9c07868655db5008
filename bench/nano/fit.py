"""Fits the linear part of the autoencoder on the world, on the world out of step with the grid, and on free strokes."""

from __future__ import annotations

import random

import numpy as np

from flux2_train.nano.autoencoder import PatchAutoencoder

from . import autoencoder
from .data import to_pixels
from .strokes import strokes
from .world import scenes

COUNTS = (900, 300, 300)  # scenes of each size
OFF_GRID, STROKES = 100, 100  # enough for 28 and 30 dB there; more would cost the scenes theirs


def fit_linear(seed: int = 0) -> PatchAutoencoder:
    """Principal components of patches, as ``autoencoder`` describes; a minute."""
    pictures = [scene_pictures(n, size, seed) for n, size in zip(COUNTS, scenes.SIZES, strict=True)]
    shifted = off_grid(OFF_GRID, seed)
    return autoencoder.fit([to_pixels(p) for p in (*pictures, shifted, strokes(STROKES, seed))])


def scene_pictures(count: int, size: tuple[int, int], seed: int) -> list[np.ndarray]:
    """``count`` random scenes (H, W, 3) of one size."""
    rng = random.Random(seed)
    return [scenes.draw(scenes.random_spec(rng), size) for _ in range(count)]


def off_grid(count: int, seed: int) -> list[np.ndarray]:
    """Square scenes, shifted by any number of pixels; what leaves at one edge comes in at the other."""
    rng = np.random.default_rng(seed)
    return [np.roll(p, rng.integers(0, 16, 2), (0, 1)) for p in scene_pictures(count, scenes.SIZES[0], seed + 1)]
