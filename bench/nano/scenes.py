"""What a picture may show, how it is laid out, and how it is put in words.

Three kinds: `one` object at one of nine places, a `pair` in a relation, `many` equal objects in an arrangement. A spec
names the attributes; `lay_out` adds the small jitter; `caption` says the spec. One spec in twenty is held out for ever.
"""

import random
import zlib
from dataclasses import dataclass, replace

from .render import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Scene, Thing

SIZES = ((128, 128), (160, 96), (96, 160))
PLACES = {
    "top left": (0, 0),
    "top": (1, 0),
    "top right": (2, 0),
    "left": (0, 1),
    "center": (1, 1),
    "right": (2, 1),
    "bottom left": (0, 2),
    "bottom": (1, 2),
    "bottom right": (2, 2),
}
RELATIONS = ("left of", "right of", "above", "below")
ARRANGEMENTS = {"row": (2, 3), "column": (2, 3), "grid": (4,)}
NUMBERS = {2: "two", 3: "three", 4: "four"}
ANCHORS = (0.22, 0.5, 0.78)
_LINE = (0.18, 0.5, 0.82)
_PAIR = (0.27, 0.73)
_JITTER = 0.02  # of the side
_RADIUS = 0.18  # of the shorter side


@dataclass(frozen=True)
class Spec:
    """The attributes of a picture. `objects` holds (colour, shape); `place` a place, a relation or an arrangement."""

    kind: str
    objects: tuple[tuple[str, str], ...]
    place: str
    count: int
    background: str
    texture: str


def random_spec(rng: random.Random, held_out: bool = False) -> Spec:
    """A spec drawn evenly over kinds and attributes, from the training part or from the held-out part."""
    while True:
        spec = _any_spec(rng)
        if is_held_out(spec) == held_out:
            return spec


def is_held_out(spec: Spec) -> bool:
    """True for one spec in twenty, by a hash of its attributes."""
    return zlib.crc32(repr(spec).encode()) % 20 == 0


def lay_out(spec: Spec, size: tuple[int, int], rng: random.Random) -> Scene:
    """Place the objects of `spec` in a picture of `size` (width, height), with jitter."""
    width, height = size
    centres = _centres(spec)
    objects = spec.objects * spec.count if spec.kind == "many" else spec.objects
    radius = min(width, height) * _RADIUS * (0.75 if spec.count == 3 else 1.0) * rng.uniform(0.95, 1.05)
    shift_x, shift_y = (side * rng.uniform(-_JITTER, _JITTER) for side in size)
    things = tuple(
        Thing(colour, shape, width * x + shift_x, height * y + shift_y, radius)
        for (colour, shape), (x, y) in zip(objects, centres, strict=True)
    )
    return Scene(width, height, spec.background, spec.texture, things)


def caption(spec: Spec, with_place: bool = True, with_background: bool = True, with_colours: bool = True) -> str:
    """The spec in words; the place of a single object, the background and the colours may be left open."""
    names = [_named(colour if with_colours else "", shape) for colour, shape in spec.objects]
    if spec.kind == "one":
        text = names[0] + (f" {_place_words(spec.place)}" if with_place else "")
    elif spec.kind == "pair":
        text = f"{names[0]} {spec.place} {names[1]}"
    else:
        colour, shape = spec.objects[0]
        text = f"{NUMBERS[spec.count]} {f'{colour} ' if with_colours else ''}{plural(shape)} in a {spec.place}"
    return text + (f" on a {background_words(spec)} background" if with_background else "")


def background_words(spec: Spec) -> str:
    """`white` or `striped white`."""
    return spec.background if spec.texture == "plain" else f"{spec.texture} {spec.background}"


def plural(shape: str) -> str:
    """circles, crosses."""
    return shape + ("es" if shape.endswith("s") else "s")


def random_edit(rng: random.Random) -> tuple[Spec, str, Spec]:
    """(before, instruction, after) that changes exactly one attribute of a picture with one or two objects."""
    while True:
        before = random_spec(rng)
        if before.kind == "many" or (before.kind == "pair" and before.objects[0][1] == before.objects[1][1]):
            continue
        instruction, after = rng.choice((_recolour, _reshape, _rebackground, _retexture, _move))(before, rng)
        if after != before and not is_held_out(after):
            return before, instruction, after


def _recolour(spec: Spec, rng: random.Random) -> tuple[str, Spec]:
    i, colour = rng.randrange(len(spec.objects)), rng.choice(list(COLOURS))
    return f"make the {spec.objects[i][1]} {colour}", _with_object(spec, i, (colour, spec.objects[i][1]))


def _reshape(spec: Spec, rng: random.Random) -> tuple[str, Spec]:
    i, shape = rng.randrange(len(spec.objects)), rng.choice(SHAPES)
    return f"turn the {spec.objects[i][1]} into a {shape}", _with_object(spec, i, (spec.objects[i][0], shape))


def _rebackground(spec: Spec, rng: random.Random) -> tuple[str, Spec]:
    background = rng.choice(list(BACKGROUNDS))
    return f"make the background {background}", replace(spec, background=background)


def _retexture(spec: Spec, rng: random.Random) -> tuple[str, Spec]:
    texture = rng.choice(TEXTURES)
    return f"make the background {texture}", replace(spec, texture=texture)


def _move(spec: Spec, rng: random.Random) -> tuple[str, Spec]:
    if spec.kind == "pair":
        return "", spec
    place = rng.choice(list(PLACES))
    return f"move the {spec.objects[0][1]} {_place_words(place).replace('at', 'to').replace('in', 'to')}", replace(
        spec, place=place
    )


def _with_object(spec: Spec, index: int, item: tuple[str, str]) -> Spec:
    objects = list(spec.objects)
    objects[index] = item
    return replace(spec, objects=tuple(objects))


def _any_spec(rng: random.Random) -> Spec:
    kind = rng.choice(("one", "pair", "many"))
    first, second = ((rng.choice(list(COLOURS)), rng.choice(SHAPES)) for _ in range(2))
    background, texture = rng.choice(list(BACKGROUNDS)), rng.choice(TEXTURES)
    if kind == "one":
        return Spec(kind, (first,), rng.choice(list(PLACES)), 1, background, texture)
    if kind == "pair":
        return Spec(kind, (first, second), rng.choice(RELATIONS), 2, background, texture)
    count = rng.choice((2, 3, 4))
    place = rng.choice([name for name, counts in ARRANGEMENTS.items() if count in counts])
    return Spec(kind, (first,), place, count, background, texture)


def _centres(spec: Spec) -> list[tuple[float, float]]:
    """Centres as fractions of width and height, in the order of the objects."""
    if spec.kind == "one":
        column, row = PLACES[spec.place]
        return [(ANCHORS[column], ANCHORS[row])]
    if spec.kind == "pair":
        first, second = _PAIR if spec.place in ("left of", "above") else _PAIR[::-1]
        return [(first, 0.5), (second, 0.5)] if spec.place.endswith("of") else [(0.5, first), (0.5, second)]
    if spec.place == "grid":
        return [(x, y) for y in _PAIR for x in _PAIR]
    line = _PAIR if spec.count == 2 else _LINE
    return [(a, 0.5) if spec.place == "row" else (0.5, a) for a in line]


def _place_words(place: str) -> str:
    return "in the center" if place == "center" else f"at the {place}"


def _named(colour: str, shape: str) -> str:
    words = f"{colour} {shape}".strip()
    return f"{_article(words)} {words}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
