"""What a picture may show and where it lies. Everything lies on the latent grid of 16 pixels, or half-way between.

Three kinds: ``one`` creature or thing at a place, a ``pair`` beside each other, a ``row`` of two or three small things.
A spec names all that a picture shows; one spec in twenty is held out for ever.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .brush import lay, paint
from .creatures import HATS, POSES, SPECIES, draw_creature
from .palette import COLOURS, tone
from .scenery import GROUNDS, SKIES, draw_scenery
from .things import FLYING, SMALL, STANDING, draw_thing

SIZES = ((128, 128), (160, 96), (96, 160))  # width, height
PLACES = ("left", "middle", "right")
FEET = 16  # pixels from the bottom to what stands; what flies is two cells higher
LIFT = {"jumping": 16}
NUMBERS = {2: "two", 3: "three"}
_SPAN = 3  # cells of all but the small things
# Left cells of the small things of a row, by count and by the picture's width in cells.
ROWS = {2: {8: (1, 5), 10: (2, 6), 6: (0, 4)}, 3: {8: (0, 3, 6), 10: (1, 4, 7), 6: (0, 2, 4)}}


@dataclass(frozen=True)
class Object:
    """A creature or a thing with its colour; hat and pose are a creature's."""

    name: str
    colour: str
    hat: str = ""
    pose: str = "standing"

    @property
    def is_creature(self) -> bool:
        """Whether it has a face."""
        return self.name in SPECIES


@dataclass(frozen=True)
class Spec:
    """All that a picture shows. ``place`` is for one object; of a pair the first stands at the left."""

    kind: str
    objects: tuple[Object, ...]
    place: str
    sky: str
    ground: str


def random_spec(rng: random.Random, held_out: bool = False) -> Spec:
    """A spec of the training part, or of the held-out part."""
    while True:
        spec = _any_spec(rng)
        if is_held_out(spec) == held_out:
            return spec


def is_held_out(spec: Spec) -> bool:
    """True for one spec in twenty, by a hash of its attributes."""
    return zlib.crc32(repr(spec).encode()) % 20 == 0


def draw(spec: Spec, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1] of ``size`` (width, height)."""
    picture = draw_scenery(*size, spec.sky, spec.ground).copy()
    lay_objects(picture, spec, size, sprite)
    return picture


def lay_objects(
    picture: np.ndarray, spec: Spec, size: tuple[int, int], sprite_of: Callable[[Object], np.ndarray]
) -> None:
    """Lay ``sprite_of`` each object over a picture (H, W, 3), in place."""
    for thing, (left, top) in zip(spec.objects, corners(spec, size), strict=True):
        lay(picture, sprite_of(thing), left, top)


def covers_of(thing: Object) -> dict[str, np.ndarray]:
    """``covers`` of an object."""
    return covers(thing.name, thing.hat, thing.pose)


def corners(spec: Spec, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Left and top of each object's sprite, in pixels."""
    cells = size[0] // 16
    if spec.kind == "row":
        lefts = [16 * cell for cell in ROWS[len(spec.objects)][cells]] if spec.objects else []
    else:
        places = ("left", "right") if spec.kind == "pair" else (spec.place,)
        lefts = [left_of(place, size[0]) for place in places]
    return [(left, top_of(thing, size[1])) for left, thing in zip(lefts, spec.objects, strict=True)]


def left_of(place: str, width: int) -> int:
    """Left edge in pixels of a sprite of three cells at a place."""
    return {"left": 0, "middle": (width - 16 * _SPAN) // 2, "right": width - 16 * _SPAN}[place]


def top_of(thing: Object, height: int) -> int:
    """Top edge in pixels of an object's sprite."""
    tall = sprite(thing).shape[0]
    return height - FEET - tall - (32 if thing.name in FLYING else LIFT.get(thing.pose, 0))


@lru_cache(4096)
def sprite(thing: Object) -> np.ndarray:
    """(h, w, 4) float32: colour times cover, and cover. Kept: do not change it."""
    return paint(covers_of(thing), lambda role: tone(role, thing.colour))


@lru_cache(1024)
def covers(name: str, hat: str = "", pose: str = "standing") -> dict[str, np.ndarray]:
    """For each role the share (h, w) of the pixels that it covers."""
    return (draw_creature(name, hat, pose) if name in SPECIES else draw_thing(name)).covers()


def _any_spec(rng: random.Random) -> Spec:
    kind = rng.choices(("one", "pair", "row"), (9, 8, 3))[0]
    sky, ground = rng.choice(list(SKIES)), rng.choice(list(GROUNDS))
    if kind == "one":
        name = rng.choice([*SPECIES, *SPECIES, *STANDING, *FLYING])
        return Spec(kind, (_object(rng, name),), rng.choice(PLACES), sky, ground)
    if kind == "pair":
        others = [*SPECIES, *STANDING, *STANDING, *FLYING]
        objects = [_object(rng, rng.choice(list(SPECIES))), _object(rng, rng.choice(others))]
        rng.shuffle(objects)
        return Spec(kind, tuple(objects), "", sky, ground)
    thing = Object(rng.choice(list(SMALL)), rng.choice(list(COLOURS)))
    return Spec(kind, (thing,) * rng.choice(list(NUMBERS)), "", sky, ground)


def _object(rng: random.Random, name: str) -> Object:
    colour = rng.choice(list(COLOURS))
    if name not in SPECIES:
        return Object(name, colour)
    hat = rng.choice([name for name in HATS if name]) if rng.random() < 0.5 else ""
    return Object(name, colour, hat, rng.choice(POSES))
