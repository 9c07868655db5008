"""Anti-aliased drawing of scenes from distance functions; numpy only, deterministic."""

from dataclasses import dataclass
from functools import cache

import numpy as np

COLOURS = {
    "red": (220, 40, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 220),
    "purple": (140, 50, 190),
}
SHAPES = ("circle", "square", "triangle", "cross")
# Two tones each: a plain background shows the first, a texture both. None is near an object colour.
BACKGROUNDS = {
    "white": ((245, 245, 245), (205, 205, 205)),
    "gray": ((140, 140, 140), (105, 105, 105)),
    "black": ((20, 20, 20), (60, 60, 60)),
    "pink": ((245, 185, 205), (220, 145, 170)),
}
TEXTURES = ("plain", "striped", "dotted", "checkered")
EDGE = 1.5  # pixels; a little softer than one pixel, which the 128 latent channels carry 2 dB better
PERIOD = 16  # of every texture: one latent cell, so that a texture is the same in every cell


@dataclass(frozen=True)
class Thing:
    """One drawn object; centre and half size in pixels."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """Everything that the renderer needs."""

    width: int
    height: int
    background: str
    texture: str
    things: tuple[Thing, ...]


def draw(scene: Scene) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]."""
    image = draw_background(scene.width, scene.height, scene.background, scene.texture).copy()
    for thing in scene.things:
        paint(
            image,
            shape_distance(thing.shape, *grid(scene.width, scene.height, thing.x, thing.y), thing.radius),
            COLOURS[thing.colour],
        )
    return image


@cache
def draw_background(width: int, height: int, background: str, texture: str) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]: the first tone, the texture in the second. Cached: copy it before painting."""
    first, second = (np.array(tone, np.float32) / 255 for tone in BACKGROUNDS[background])
    mask = texture_mask(width, height, texture)[..., None]
    return first * (1 - mask) + second * mask


def texture_mask(width: int, height: int, texture: str) -> np.ndarray:
    """(H, W) float32, 1 where the second tone lies; phase fixed to the picture's corner."""
    x, y = np.meshgrid(np.arange(width) % PERIOD, np.arange(height) % PERIOD)
    half = PERIOD // 2
    if texture == "striped":
        mask = x >= half
    elif texture == "checkered":
        mask = (x >= half) != (y >= half)
    elif texture == "dotted":
        mask = np.clip(4.5 - np.hypot(x - half + 0.5, y - half + 0.5), 0, 1)
    else:
        mask = np.zeros_like(x)
    return mask.astype(np.float32)


def grid(width: int, height: int, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixel-centre coordinates (H, W) relative to (x, y)."""
    return np.meshgrid(np.arange(width, dtype=np.float32) + 0.5 - x, np.arange(height, dtype=np.float32) + 0.5 - y)


def shape_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels (negative inside) to a shape of half size `radius` at the origin."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return box(x, y, 0.88 * radius, 0.88 * radius)
    if shape == "cross":
        return np.minimum(box(x, y, radius, 0.36 * radius), box(x, y, 0.36 * radius, radius))
    if shape == "triangle":
        return triangle(x, y - 0.29 * radius, 0.58 * radius)
    raise ValueError(f"Unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    """Signed distance to a rectangle (its corners are measured along the axes, which is enough for drawing)."""
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def triangle(x: np.ndarray, y: np.ndarray, inradius: float) -> np.ndarray:
    """Signed distance to an upright equilateral triangle around its centre."""
    return np.maximum(0.8660254 * np.abs(x) - 0.5 * y, y) - inradius


def paint(image: np.ndarray, distance: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Lay a colour over (H, W, 3) `image`, in place, where `distance` is negative, with a soft edge."""
    cover = np.clip(0.5 - distance / EDGE, 0, 1)[..., None]
    image += cover * (np.array(colour, np.float32) / 255 - image)
