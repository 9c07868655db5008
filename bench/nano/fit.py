"""Fits the autoencoder on drawn scenes, and on free strokes so that it carries manners the scenes do not have."""

import random

import numpy as np
from safetensors.torch import load_file, save_file

from flux2_train.nano import WEIGHTS

from . import render, scenes
from .autoencoder import PatchAutoencoder, fit
from .data import to_pixels

VAE = WEIGHTS / "vae.safetensors"


def fit_autoencoder(seed: int = 0) -> None:
    """Draw, fit, write the pack's vae.safetensors; some ten seconds."""
    pictures = [scene_pictures(count, size, seed) for count, size in zip((1500, 300, 300), scenes.SIZES, strict=True)]
    model = fit([to_pixels(p) for p in (*pictures, strokes(400, seed))])
    WEIGHTS.mkdir(exist_ok=True)
    save_file(model.state_dict(), VAE, metadata={"format": "pt", "modelspec.title": "nano autoencoder"})


def load_autoencoder() -> PatchAutoencoder:
    """The fitted autoencoder."""
    model = PatchAutoencoder()
    model.load_state_dict(load_file(VAE))
    return model


def scene_pictures(count: int, size: tuple[int, int], seed: int) -> list[np.ndarray]:
    """`count` random scenes (H, W, 3) of one size."""
    rng = random.Random(seed)
    return [render.draw(scenes.lay_out(scenes.random_spec(rng), size, rng)) for _ in range(count)]


def strokes(count: int, seed: int) -> list[np.ndarray]:
    """`count` pictures (128, 128, 3) of filled and outlined shapes of any colour, size and angle."""
    rng = np.random.default_rng(seed)
    return [_stroke_picture(rng) for _ in range(count)]


def _stroke_picture(rng: np.random.Generator) -> np.ndarray:
    image = np.empty((128, 128, 3), np.float32)
    image[:] = rng.random(3)
    for _ in range(5):
        x, y = render.grid(128, 128, *rng.uniform(0, 128, 2))
        angle, radius, shape = rng.uniform(0, 2 * np.pi), rng.uniform(8, 40), rng.choice(render.SHAPES)
        turned = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
        distance = render.shape_distance(shape, *turned, radius)
        outlined = rng.random() < 0.5
        render.paint(image, np.abs(distance) - rng.uniform(1, 5) if outlined else distance, rng.random(3) * 255)
    return image
