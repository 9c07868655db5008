"""Reads a picture back: which objects, where, on which background. Only what render.py can draw is looked for."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from .render import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, draw_background, grid, shape_distance

MIN_AREA = 0.004  # of the picture; smaller specks are edges between two colours
MIN_OVERLAP = 0.6  # below this intersection over union a blob has no shape
# Area and height of the centroid of a shape of half size 1, as render.py draws it.
_AREA = {"circle": 3.1416, "square": 3.0976, "triangle": 1.748, "cross": 2.3616}
_CENTROID = {"circle": 0.0, "square": 0.0, "triangle": 0.29, "cross": 0.0}


@dataclass(frozen=True)
class Found:
    """One object; x and y of its bounding box's centre as fractions of the picture; shape None if it has none."""

    colour: str
    shape: str | None
    x: float
    y: float
    area: int


@dataclass(frozen=True)
class Reading:
    """All that a picture shows, largest object first."""

    objects: tuple[Found, ...]
    background: str
    texture: str


def read(picture: np.ndarray) -> Reading:
    """Objects, background and texture of (H, W, 3) in [0, 1]."""
    nearest = nearest_colour(picture)
    objects, covered = [], np.zeros(nearest.shape, bool)
    for index, colour in enumerate(COLOURS):
        blobs, count = ndimage.label(ndimage.binary_opening(nearest == index, np.ones((3, 3))))
        for label in range(1, count + 1):
            blob = blobs == label
            if blob.sum() >= MIN_AREA * blob.size:
                objects.append(_measure(colour, blob))
                covered |= blob
    open_ground = ~ndimage.binary_dilation(covered, iterations=3)
    objects.sort(key=lambda found: -found.area)
    return Reading(tuple(objects), *_read_background(picture, open_ground))


def nearest_colour(picture: np.ndarray) -> np.ndarray:
    """(H, W) index of the nearest palette colour in RGB: object colours first, then the background tones."""
    difference = picture[:, :, None] - _palette()
    return np.square(difference).sum(-1).argmin(-1)


def shape_overlaps(blob: np.ndarray) -> dict[str, float]:
    """Intersection over union of a mask (H, W) with every shape of its area at its centroid."""
    y, x = (axis.mean() + 0.5 for axis in np.nonzero(blob))
    area, overlaps = blob.sum(), {}
    for shape in SHAPES:
        radius = (area / _AREA[shape]) ** 0.5
        ideal = shape_distance(shape, *grid(blob.shape[1], blob.shape[0], x, y - _CENTROID[shape] * radius), radius) < 0
        overlaps[shape] = float((ideal & blob).sum() / (ideal | blob).sum())
    return overlaps


def _measure(colour: str, blob: np.ndarray) -> Found:
    overlaps = shape_overlaps(blob)
    best = max(overlaps, key=overlaps.get)
    rows, columns = np.nonzero(blob.any(1))[0], np.nonzero(blob.any(0))[0]
    height, width = blob.shape
    return Found(
        colour,
        best if overlaps[best] >= MIN_OVERLAP else None,
        (columns[0] + columns[-1] + 1) / 2 / width,
        (rows[0] + rows[-1] + 1) / 2 / height,
        int(blob.sum()),
    )


def _read_background(picture: np.ndarray, where: np.ndarray) -> tuple[str, str]:
    """The drawn background with the smallest error on the open ground."""
    height, width = where.shape
    errors = {
        (background, texture): np.abs(picture - draw_background(width, height, background, texture))[where].mean()
        for background in BACKGROUNDS
        for texture in TEXTURES
    }
    return min(errors, key=errors.get)


@cache
def _palette() -> np.ndarray:
    tones = [tone for pair in BACKGROUNDS.values() for tone in pair]
    return np.array([*COLOURS.values(), *tones], np.float32) / 255
