"""Which part of an image is trained on, and at what size: decided once per image, from a seed.

Everything here is arithmetic on pixels and a hash. The same ``Crop`` is used for the image, its mask and its strict
references.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from ..geometry import MULTIPLE, bucket
from ..settings.crops import (
    AREA,
    CORNER,
    DOWNSCALE,
    EACH,
    FACE,
    LONGEST,
    PIXEL,
    PIXEL_AREA,
    PRESERVE,
    RANDOM,
    SKIP,
    SQUARE,
    UPSCALE,
    CropSettings,
)
from . import variations

ACCEPT = "accept"
MEGAPIXEL = 1024**2

Size = tuple[int, int]  # (width, height)
Point = tuple[float, float]  # (x, y) in pixels of the upright source
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the upright source


@dataclass(frozen=True)
class Crop:
    """``box`` of the upright source, turned around its centre, scaled to ``size``, flipped, then recoloured.

    ``angle`` is in degrees; the picture turns counter-clockwise. ``colours`` are empty or those of ``variations``.
    """

    box: Box
    size: Size
    flip_x: bool = False
    flip_y: bool = False
    angle: float = 0.0
    colours: tuple[float, ...] = ()

    def on(self, width: int, height: int, other: Size) -> Crop:
        """The same part of a partner of size ``other``, for a source of ``width`` x ``height``."""
        x, y = other[0] / width, other[1] / height
        left, top, right, bottom = self.box
        box = (left * x, top * y, min(right * x, float(other[0])), min(bottom * y, float(other[1])))
        return replace(self, box=box)

    @property
    def room(self) -> float:
        """How many times larger than ``size`` the box is."""
        left, top, right, bottom = self.box
        return min((right - left) / self.size[0], (bottom - top) / self.size[1])

    def canonical(self) -> dict:
        """Its fields, for a hash. The two that came later are left out where they do nothing."""
        later = {"angle": self.angle, "colours": self.colours}
        return {name: value for name, value in asdict(self).items() if name not in later or later[name]}

    def shrunk(self, times: int) -> Crop:
        """The same part of the source at that fraction of its size."""
        return replace(self, box=tuple(side / times for side in self.box))


def edge(resolution: float, kind: str) -> float:
    """A resolution in pixels: the side of the square of that area, or the shorter side for ``pixel``."""
    return math.sqrt(resolution * MEGAPIXEL) if kind == AREA else resolution


def measure(width: int, height: int, kind: str) -> float:
    """An image's size in the unit that ``edge`` returns, so that the two can be compared."""
    return float(min(width, height)) if kind == PIXEL else math.sqrt(width * height)


def shape_near(aspect: float, side: float, kind: str = PIXEL_AREA) -> Size:
    """(width, height) in multiples of 16 whose ratio is nearest to ``aspect``.

    At most ``side``² pixels (where 16 is not too coarse for that), or about ``side`` on the shorter side for ``pixel``.
    """
    aspect = min(max(aspect, 1 / LONGEST), LONGEST)
    if kind == PIXEL:
        return tuple(_aligned(side * max(1.0, stretch), round) for stretch in (aspect, 1 / aspect))
    sides = side * math.sqrt(aspect), side / math.sqrt(aspect)
    shapes = [
        (_aligned(sides[0], a), _aligned(sides[1], b)) for a in (math.floor, math.ceil) for b in (math.floor, math.ceil)
    ]
    fitting = [s for s in shapes if s[0] * s[1] <= side * side] or [min(shapes)]
    return min(fitting, key=lambda s: (round(abs(math.log(s[0] / s[1] / aspect)), 6), -s[0] * s[1], s))


def _aligned(side: float, rounding: Callable[[float], int]) -> int:
    return max(MULTIPLE, rounding(round(side / MULTIPLE, 9)) * MULTIPLE)


def problem(width: int, height: int, options: CropSettings) -> tuple[str, str]:
    """What to do with an image of that size (``accept``, ``skip`` or ``refuse``), and the reason."""
    kind = options.resolution_type
    least, most = (edge(value, kind) for value in (options.minimum, options.maximum))
    own, unit = measure(width, height, kind), "on its shorter side" if kind == PIXEL else "squared"
    if least and own < least and options.too_small != UPSCALE:
        return options.too_small, f"{width}x{height} is below the minimum of {least:.0f} pixels {unit}"
    if most and own > most and options.too_large != DOWNSCALE:
        return options.too_large, f"{width}x{height} is above the maximum of {most:.0f} pixels {unit}"
    if not options.crop and max(width, height) > LONGEST * min(width, height):
        return SKIP, f"{width}x{height} is longer than 8:1, which only works with crop on"
    return ACCEPT, ""


def crops(
    width: int,
    height: int,
    digest: str,
    resolution: float,
    options: CropSettings,
    face: Point | None = None,
) -> tuple[Crop, ...]:
    """Every crop of an image of that size and content: one per resolution, number, variation and flip.

    ``face`` is the point that crop style 'face' centres on; without one it takes the image's centre.
    """
    unflipped = []
    for side in _sides(width, height, resolution, options):
        for number in range(options.crops):
            seed = f"{options.seed}/{digest}/{side:g}/{number}"
            crop = _crop(width, height, side, options, random.Random(seed), face)
            unflipped += [crop, *_variations(crop, seed, options)]
    flips = [(x, y) for y in _either(options.flip_y) for x in _either(options.flip_x)]
    return tuple(dict.fromkeys(replace(c, flip_x=x, flip_y=y) for x, y in flips for c in unflipped))


def _variations(crop: Crop, seed: str, options: CropSettings) -> list[Crop]:
    """The crop turned and recoloured at random, as often as the options say."""
    if not options.varies:
        return []
    made = []
    for number in range(options.variations):
        rng = random.Random(f"{seed}/variation {number}")
        angle = rng.uniform(-options.rotation, options.rotation)
        colours = variations.draw_colours(rng, options.color_jitter) if options.color_jitter else ()
        made.append(replace(crop, box=variations.turned_within(crop.box, angle), angle=angle, colours=colours))
    return made


def _either(on: bool) -> tuple[bool, ...]:
    return (False, True) if on else (False,)


def _sides(width: int, height: int, resolution: float, options: CropSettings) -> list[float]:
    kind = options.resolution_type
    listed = [edge(r, kind) for r in options.resolutions] or [float(resolution)]
    if options.use == EACH:
        return list(dict.fromkeys(listed))
    own = measure(width, height, kind)
    return [min(listed, key=lambda side: (abs(math.log(side / own)), side))]


def _crop(width: int, height: int, side: float, options: CropSettings, rng: random.Random, face: Point | None) -> Crop:
    if not options.crop:
        own = side if options.upscale else min(side, measure(width, height, options.resolution_type))
        return Crop(
            (0.0, 0.0, float(width), float(height)), _size_uncropped(width, height, own, options.resolution_type)
        )
    size = _size(width, height, side, options, rng)
    if not options.upscale:
        size = _no_larger(width, height, size)
    return Crop(_box(width, height, size, options.crop_style, rng, face), size)


def _size_uncropped(width: int, height: int, side: float, kind: str) -> Size:
    """The size of an image that is not cropped, rounded to multiples of 16: each side changes by at most 8 pixels."""
    stretch = math.sqrt(width / height)
    wanted = (
        (side * max(1.0, width / height), side * max(1.0, height / width))
        if kind == PIXEL
        else (side * stretch, side / stretch)
    )
    return tuple(_aligned(value, round) for value in wanted)


def _size(width: int, height: int, side: float, options: CropSettings, rng: random.Random) -> Size:
    own, kind = width / height, options.resolution_type
    if options.crop_aspect == SQUARE:
        return shape_near(1.0, side, kind)
    if options.crop_aspect == PRESERVE:
        return shape_near(own, side, kind)
    if options.crop_aspect == RANDOM:
        return shape_near(rng.choice(options.aspects), side, kind)
    if options.aspects:
        return shape_near(min(options.aspects, key=lambda a: abs(math.log(a / own))), side, kind)
    if kind == PIXEL:
        return shape_near(own, side, kind)
    return bucket(width, height, max(MULTIPLE, round(side)))


def _no_larger(width: int, height: int, size: Size) -> Size:
    """``size``, or the largest size of that shape, in multiples of 16, to which the image need not be scaled up."""
    scale = min(1.0, width / size[0], height / size[1])
    return size if scale == 1.0 else tuple(_aligned(value * scale, math.floor) for value in size)


def _box(width: int, height: int, size: Size, style: str, rng: random.Random, face: Point | None) -> Box:
    scale = min(width / size[0], height / size[1])
    w, h = min(size[0] * scale, float(width)), min(size[1] * scale, float(height))
    left, top = _corner(width - w, height - h, w, h, style, rng, face)
    return left, top, min(left + w, float(width)), min(top + h, float(height))


def _corner(
    free_x: float, free_y: float, w: float, h: float, style: str, rng: random.Random, face: Point | None
) -> Point:
    if style == CORNER:
        return 0.0, 0.0
    if style == RANDOM:
        return rng.random() * free_x, rng.random() * free_y
    if style == FACE and face:
        return min(max(face[0] - w / 2, 0.0), free_x), min(max(face[1] - h / 2, 0.0), free_y)
    return free_x / 2, free_y / 2
