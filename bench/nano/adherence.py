"""Does a picture show what its prompt says? One yes or no per attribute."""

from itertools import permutations

import numpy as np

from .detect import Found, Reading, read
from .scenes import ANCHORS, PLACES, Spec


def attributes(spec: Spec, picture: np.ndarray) -> dict[str, bool]:
    """Every attribute of `spec`, and whether (H, W, 3) `picture` in [0, 1] has it."""
    reading = read(picture)
    right = {
        "count": len(reading.objects) == spec.count,
        "background": reading.background == spec.background,
        "texture": reading.texture == spec.texture,
    }
    objects = {"one": _one, "pair": _pair, "many": _many}[spec.kind]
    return right | objects(spec, reading)


def _one(spec: Spec, reading: Reading) -> dict[str, bool]:
    if not reading.objects:
        return {"colour": False, "shape": False, "place": False}
    found = reading.objects[0]
    return {
        "colour": found.colour == spec.objects[0][0],
        "shape": found.shape == spec.objects[0][1],
        "place": place_of(found) == spec.place,
    }


def _pair(spec: Spec, reading: Reading) -> dict[str, bool]:
    """The better of the two ways to match the two largest objects with the two named ones."""
    names = ("colour 1", "shape 1", "colour 2", "shape 2", "relation")
    if len(reading.objects) < 2:
        return dict.fromkeys(names, False)
    (c1, s1), (c2, s2) = spec.objects
    ways = [
        dict(
            zip(
                names,
                (a.colour == c1, a.shape == s1, b.colour == c2, b.shape == s2, relation_of(a, b) == spec.place),
                strict=True,
            )
        )
        for a, b in permutations(reading.objects[:2])
    ]
    return max(ways, key=lambda way: sum(way.values()))


def _many(spec: Spec, reading: Reading) -> dict[str, bool]:
    colour, shape = spec.objects[0]
    some = bool(reading.objects)
    return {
        "colour": some and all(found.colour == colour for found in reading.objects),
        "shape": some and all(found.shape == shape for found in reading.objects),
        "arrangement": arrangement_of(reading.objects) == spec.place,
    }


def place_of(found: Found) -> str:
    """The nearest of the nine places."""
    cell = tuple(int(np.argmin([abs(value - anchor) for anchor in ANCHORS])) for value in (found.x, found.y))
    return next(name for name, at in PLACES.items() if at == cell)


def relation_of(a: Found, b: Found) -> str:
    """How `a` lies to `b`, along the axis on which they are further apart."""
    x, y = a.x - b.x, a.y - b.y
    if abs(x) > abs(y):
        return "left of" if x < 0 else "right of"
    return "above" if y < 0 else "below"


def arrangement_of(objects: tuple[Found, ...]) -> str | None:
    """row, column or grid, by the spread of the centres along each axis."""
    if len(objects) < 2:
        return None
    wide, high = (np.ptp([getattr(found, axis) for found in objects]) > 0.2 for axis in ("x", "y"))
    return {(True, False): "row", (False, True): "column", (True, True): "grid"}.get((wide, high))
