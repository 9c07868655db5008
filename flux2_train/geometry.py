"""Sizes and crops: pure arithmetic on pixels."""

from __future__ import annotations

import math

MULTIPLE = 16  # pixels per latent cell and side


def bucket(width: int, height: int, resolution: int) -> tuple[int, int]:
    """The bucket (width, height) for an image of that shape: about ``resolution``² pixels, sides multiples of 16.

    Buckets lie on a coarse grid (a sixteenth of the resolution) so that images of similar shape share one.
    """
    step = max(MULTIPLE, round(resolution / 16 / MULTIPLE) * MULTIPLE)
    aspect, area = width / height, resolution**2
    sides = range(max(MULTIPLE, resolution // 2 // step * step), 2 * resolution + 1, step)
    shapes = [(w, max(MULTIPLE, math.floor(area / w / step) * step)) for w in sides]
    shapes += [(h, w) for w, h in shapes]
    # nearest aspect ratio first; of two equally near ones the larger
    return min(shapes, key=lambda s: (round(abs(math.log(s[0] / s[1] / aspect)), 6), -s[0] * s[1], s))


def at_most(width: int, height: int, pixels: int) -> tuple[int, int]:
    """The size scaled down to ``pixels`` at most, never up, both sides multiples of 16."""
    scale = min(1.0, math.sqrt(pixels / (width * height)))
    return tuple(max(MULTIPLE, int(side * scale + 1e-6) // MULTIPLE * MULTIPLE) for side in (width, height))
