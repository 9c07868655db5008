"""The character of the example data sets: a turquoise creature with antlers, a scarf and a star on its belly."""

from __future__ import annotations

from functools import cache

import numpy as np

from .brush import Brush
from .creatures import HEAD, HEIGHT, MIDDLE, WIDTH
from .palette import FIXED

TRAITS = ("fur", "antlers", "scarf", "star")
TONES = {
    "fur": (20, 184, 178),
    "paws": (8, 122, 128),
    "antlers": (255, 112, 82),
    "scarf": (216, 36, 132),
    "star": (206, 240, 66),
    "face": (196, 246, 236),
    **FIXED,
}


@cache
def covers(pose: str) -> dict[str, np.ndarray]:
    """For each role the share (64, 48) of the pixels that it covers."""
    brush = Brush(WIDTH, HEIGHT)
    _antlers(brush)
    _body(brush, pose)
    _head(brush)
    brush.box("scarf", MIDDLE - 13, 42, MIDDLE + 13, 47.5, 2.5)
    brush.box("scarf", MIDDLE + 5, 45, MIDDLE + 11, 56, 1.5)
    return brush.covers()


def _antlers(brush: Brush) -> None:
    for side in (-1, 1):
        stem = [(MIDDLE + side * x, y) for x, y in ((8, 22), (12, 10), (18, 3))]
        brush.line("antlers", 4, *stem)
        brush.line("antlers", 4, (MIDDLE + side * 11.5, 12), (MIDDLE + side * 5, 3))


def _body(brush: Brush, pose: str) -> None:
    spread = 4 if pose == "jumping" else 0
    for side in (-1, 1):
        brush.ellipse("paws", MIDDLE + side * (7 + spread), 61 - spread / 2, 6, 3)
        up = pose == "jumping" or (pose == "waving" and side > 0)
        brush.line("paws", 6, (MIDDLE + side * 10, 48), (MIDDLE + side * (19 if up else 15), 36 if up else 55))
    brush.ellipse("fur", MIDDLE, 51, 12.5, 11)
    points = []
    for i in range(10):
        radius, angle = (7 if i % 2 == 0 else 3.2), np.pi * i / 5 - np.pi / 2
        points.append((MIDDLE - 2.5 + radius * np.cos(angle), 54 + radius * np.sin(angle)))
    brush.polygon("star", *points)


def _head(brush: Brush) -> None:
    for side in (-1, 1):
        brush.ellipse("fur", MIDDLE + side * 17, 27, 5, 7)
    brush.ellipse("fur", MIDDLE, HEAD, 17, 14)
    brush.ellipse("face", MIDDLE, 35, 11, 8)
    for side in (-1, 1):
        brush.ellipse("white", MIDDLE + side * 7, 28, 4.8)
        brush.ellipse("black", MIDDLE + side * 6.3, 28.5, 2.7)
    brush.ellipse("black", MIDDLE, 34.5, 2.4, 1.8)
    brush.arc("black", 1.5, (MIDDLE - 4, 33, MIDDLE + 4, 41), 20, 160)
