"""Turned and recoloured variations of an image: what is drawn for one, and how it is painted."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageEnhance

Colours = tuple[float, float, float, float]  # factors of brightness, contrast, saturation; hue in degrees
Box = tuple[float, float, float, float]
HUE = 36.0  # degrees of hue at a strength of 1: hue is seen much sooner than the others


def draw_colours(rng: random.Random, strength: float) -> Colours:
    """Three factors from 1 - ``strength`` to 1 + ``strength`` and a turn of the hue, each drawn evenly."""
    factors = (rng.uniform(1 - strength, 1 + strength) for _ in range(3))
    return (*factors, rng.uniform(-HUE * strength, HUE * strength))


def recoloured(image: Image.Image, colours: Colours) -> Image.Image:
    """An RGB picture with other brightness, contrast, saturation and hue, in this order."""
    *factors, degrees = colours
    steps = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for step, factor in zip(steps, factors, strict=True):
        image = step(image).enhance(factor)
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point(lambda level: (level + round(degrees / 360 * 256)) % 256)
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def turned_within(box: Box, angle: float) -> Box:
    """The largest box of the same shape and centre that lies inside ``box`` when turned by ``angle`` degrees."""
    width, height = box[2] - box[0], box[3] - box[1]
    wide, high = extent(width, height, angle)
    return about_centre(box, min(width / wide, height / high), width, height)


def extent(width: float, height: float, angle: float) -> tuple[float, float]:
    """Width and height of what surrounds a turned rectangle."""
    sine, cosine = abs(math.sin(math.radians(angle))), abs(math.cos(math.radians(angle)))
    return width * cosine + height * sine, width * sine + height * cosine


def about_centre(box: Box, scale: float, width: float, height: float) -> Box:
    """The box of ``scale`` times that width and height around the centre of ``box``."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return x - scale * width / 2, y - scale * height / 2, x + scale * width / 2, y + scale * height / 2


def turn(image: Image.Image, box: Box, angle: float, size: tuple[int, int], resample: int) -> Image.Image:
    """``box`` of ``image``, turned by ``angle`` degrees around its centre, at ``size``.

    What surrounds it is scaled first: turning alone would not smooth what it makes smaller.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    outer = _inside(about_centre(box, 1, *extent(width, height, angle)), image.size)
    scales = size[0] / width, size[1] / height
    sides = tuple(max(1, math.ceil((outer[i + 2] - outer[i]) * scales[i])) for i in (0, 1))
    scaled = image.resize(sides, resample, box=outer)
    matrix = _matrix(box, outer, angle, size, sides)
    return scaled.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def _matrix(box: Box, outer: Box, angle: float, size: tuple[int, int], sides: tuple[int, int]) -> list[float]:
    """Two rows (a, b, c) that take a pixel of the result to one of ``outer``, which is scaled to ``sides``."""
    # pixels of the source for one of the result
    across, down = (box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    rows = []
    for i, (x, y) in enumerate(((cosine * across, -sine * down), (sine * across, cosine * down))):
        fine = sides[i] / (outer[i + 2] - outer[i])
        centre = (box[i] + box[i + 2]) / 2 - outer[i]
        rows += [x * fine, y * fine, (centre - x * size[0] / 2 - y * size[1] / 2) * fine]
    return rows


def _inside(box: Box, size: tuple[int, int]) -> Box:
    """The part of the box that lies in a picture of that size; rounding may have moved it out by a hair."""
    return max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(size[0])), min(box[3], float(size[1]))
