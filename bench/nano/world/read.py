"""Reads a picture back by drawing: the scene whose exact render is nearest to the picture, and how near it is.

Sky and ground are chosen first, by the error at which most of the picture agrees. Then every object that fits a place
is laid there in turn; the squared error of all of them at once is a few matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from scipy.ndimage import gaussian_filter

from .creatures import HATS, POSES, SPECIES
from .palette import COLOURS
from .scenery import GROUNDS, SKIES, draw_scenery
from .scenes import FEET, LIFT, PLACES, ROWS, Object, Spec, draw, left_of, sprite, top_of
from .things import FLYING, SMALL, STANDING

LARGEST = 0.15  # error of a pixel, of 1, above which it says nothing of sky and ground
WINDOW = 64 + max(LIFT.values())  # pixels above an object's feet in which it may lie


@dataclass(frozen=True)
class Bank:
    """Sprites in a window (WINDOW, w), flat: colours (n, 3 p) and covers (n, p), as ``brush.paint`` gives them."""

    objects: tuple[Object, ...]
    colours: np.ndarray
    covers: np.ndarray
    squares: np.ndarray  # (n,) of the colours
    products: np.ndarray  # (n, 3 p) of colours and covers

    def errors(self, ground: np.ndarray, picture: np.ndarray) -> np.ndarray:
        """(n,) by how much the squared error of (WINDOW, w, 3) grows when each sprite is laid over ``ground``.

        With g the ground, d = g - picture, s colour times cover and a cover: |s - a g + d|^2 - |d|^2.
        """
        missing = ground - picture
        each = np.float32([(ground**2).sum(-1).ravel(), -2 * (ground * missing).sum(-1).ravel()])
        both = (self.covers**2) @ each[0] + self.covers @ each[1]
        return self.squares + both - 2 * self.products @ ground.ravel() + 2 * self.colours @ missing.ravel()


def read(picture: np.ndarray) -> Spec:
    """Reads the scene in a picture (H, W, 3) in [0, 1]. A picture without objects is a row of zero objects."""
    height, width = picture.shape[:2]
    sky, ground = _scenery(picture)
    empty = draw_scenery(width, height, sky, ground)
    large, found = bank(small=False), {}
    for place in PLACES:
        found[place] = _best(large, empty, picture, left_of(place, width))
    guesses = [(error, "one", (thing,), place) for place, (error, thing) in found.items()]
    (first, left), (second, right) = found["left"], found["right"]
    guesses.append((first + second, "pair", (left, right), ""))
    for cells in (ROWS[count][width // 16] for count in ROWS):
        each = [_best(bank(small=True), empty, picture, 16 * cell) for cell in cells]
        guesses.append((sum(error for error, _ in each), "row", tuple(thing for _, thing in each), ""))
    error, kind, objects, place = min(guesses, key=lambda guess: guess[0])
    if error >= 0:
        return Spec("row", (), "", sky, ground)
    return Spec(kind, objects, place, sky, ground)


def attributes(spec: Spec, found: Spec) -> dict[str, bool]:
    """Every attribute of ``spec``, and whether what was ``found`` has it; objects are compared place by place."""
    right = {
        "sky": found.sky == spec.sky,
        "ground": found.ground == spec.ground,
        "count": len(found.objects) == len(spec.objects),
    }
    if spec.kind == "one":
        right["place"] = (found.kind, found.place) == ("one", spec.place)
    for i, thing in enumerate(spec.objects):
        other = found.objects[i] if i < len(found.objects) else None
        right |= {f"{name} {i + 1}": value for name, value in _compared(thing, other).items()}
    return right


def likeness(picture: np.ndarray, found: Spec) -> float:
    """Structural similarity of a picture to the exact render of what was ``found`` in it: 1 for a render."""
    return ssim(picture, draw(found, picture.shape[1::-1]))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean structural similarity (Wang et al. 2004) of (H, W, 3) in [0, 1], in Gaussian windows of 1.5 pixels."""

    def blurred(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, (1.5, 1.5, 0), truncate=3.5)

    a, b = np.float64(a), np.float64(b)
    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    both = blurred(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    share = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(share.mean())


@cache
def bank(small: bool) -> Bank:
    """Every object that may stand at a place, or in a row."""
    objects = tuple(_small() if small else _large())
    width = 32 if small else 48
    pictures = np.zeros((len(objects), WINDOW, width, 4), np.float32)
    for i, thing in enumerate(objects):
        drawn, top = sprite(thing), top_of(thing, WINDOW + FEET)
        pictures[i, top : top + drawn.shape[0]] = drawn
    flat = (pictures[..., :3], pictures[..., 3], np.square(pictures[..., :3]), pictures[..., :3] * pictures[..., 3:])
    colours, covers, squares, products = (part.reshape(len(objects), -1) for part in flat)
    return Bank(objects, colours, covers, squares.sum(1), products)


def _large() -> list[Object]:
    creatures = [Object(name, *rest) for name in SPECIES for rest in product(COLOURS, HATS, POSES)]
    return creatures + [Object(name, colour) for name in (*STANDING, *FLYING) for colour in COLOURS]


def _small() -> list[Object]:
    return [Object(name, colour) for name in SMALL for colour in COLOURS]


def _scenery(picture: np.ndarray) -> tuple[str, str]:
    """Sky and ground of which most of the picture has the tones."""
    height, width = picture.shape[:2]
    errors = {
        names: np.minimum(np.abs(picture - draw_scenery(width, height, *names)).mean(-1), LARGEST).mean()
        for names in product(SKIES, GROUNDS)
    }
    return min(errors, key=errors.get)


def _best(choices: Bank, empty: np.ndarray, picture: np.ndarray, left: int) -> tuple[float, Object]:
    """(error, object) of the object that fits best with its left edge at ``left``; the empty ground has error 0."""
    height = picture.shape[0]
    width = choices.covers.shape[1] // WINDOW
    window = slice(height - FEET - WINDOW, height - FEET), slice(left, left + width)
    errors = choices.errors(empty[window], picture[window])
    best = int(errors.argmin())
    return float(errors[best]), choices.objects[best]


def _compared(thing: Object, other: Object | None) -> dict[str, bool]:
    names = ("name", "colour", "hat", "pose") if thing.is_creature else ("name", "colour")
    return {name: other is not None and getattr(other, name) == getattr(thing, name) for name in names}
