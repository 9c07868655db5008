"""Free strokes: filled and outlined shapes of any colour, size and angle, for what the world does not have."""

from __future__ import annotations

import numpy as np

from .world.palette import Colour

SHAPES = ("circle", "square", "triangle", "cross")
EDGE = 1.5  # pixels; a little softer than one pixel, which the 128 latent channels carry 2 dB better
SIDE, STROKES = 128, 5


def strokes(count: int, seed: int) -> list[np.ndarray]:
    """``count`` pictures (128, 128, 3) of five strokes each."""
    rng = np.random.default_rng(seed)
    return [_stroke_picture(rng) for _ in range(count)]


def paint_shape(image: np.ndarray, shape: str, x: float, y: float, radius: float, colour: Colour) -> None:
    """Lay a shape of half size ``radius`` around (x, y) over ``image`` (H, W, 3), in place, with a soft edge."""
    _lay(image, _distance(shape, *_grid(*image.shape[1::-1], x, y), radius), colour)


def _stroke_picture(rng: np.random.Generator) -> np.ndarray:
    image = np.empty((SIDE, SIDE, 3), np.float32)
    image[:] = rng.random(3)
    for _ in range(STROKES):
        x, y = _grid(SIDE, SIDE, *rng.uniform(0, SIDE, 2))
        angle, radius, shape = rng.uniform(0, 2 * np.pi), rng.uniform(8, 40), rng.choice(SHAPES)
        turned = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
        distance = _distance(shape, *turned, radius)
        outlined = rng.random() < 0.5
        _lay(image, np.abs(distance) - rng.uniform(1, 5) if outlined else distance, rng.random(3) * 255)
    return image


def _grid(width: int, height: int, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (H, W) of the pixels' centres relative to (x, y)."""
    return np.meshgrid(np.arange(width, dtype=np.float32) + 0.5 - x, np.arange(height, dtype=np.float32) + 0.5 - y)


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels, negative inside, to a shape of half size ``radius`` at the origin."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return _box(x, y, 0.88 * radius, 0.88 * radius)
    if shape == "cross":
        return np.minimum(_box(x, y, radius, 0.36 * radius), _box(x, y, 0.36 * radius, radius))
    lower = y - 0.29 * radius  # an upright equilateral triangle around its centre
    return np.maximum(0.8660254 * np.abs(x) - 0.5 * lower, lower) - 0.58 * radius


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    """Signed distance to a rectangle, along the axes at its corners, which is enough for drawing."""
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _lay(image: np.ndarray, distance: np.ndarray, colour: Colour) -> None:
    cover = np.clip(0.5 - distance / EDGE, 0, 1)[..., None]
    image += cover * (np.array(colour, np.float32) / 255 - image)
