"""Three things nano does not know, as a user would bring them: a style, a character, an edit.

Each writes a dataset folder (pictures with .txt captions), gives test prompts with or without its trigger, and scores a
picture between 0 (the base model) and 1 (a real render).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from . import scenes
from .adherence import attributes
from .detect import nearest_colour
from .render import COLOURS, Scene, Thing, draw, draw_background, grid, paint, shape_distance

TRIGGER = "vorn"
STROKE = 5.0  # pixels, of the style's outlines
FRAME = 8  # pixels, of the edit's frame
FRAME_COLOUR = "orange"
FIGURE = (("hat", "triangle", "red"), ("head", "circle", "yellow"), ("body", "square", "blue"))


@dataclass(frozen=True)
class Example:
    """A caption, the picture it belongs to (H, W, 3), what the picture shows, and the reference of an edit."""

    caption: str
    picture: np.ndarray
    scene: Scene
    spec: scenes.Spec
    reference: np.ndarray | None = None


@dataclass(frozen=True)
class Concept:
    """How to make an example (from a random generator, with or without the trigger), and how to score a picture."""

    name: str
    trigger: str
    class_word: str
    example: Callable[[random.Random, bool], Example]
    score: Callable[[Example, np.ndarray], float]


def style_example(rng: random.Random, trigger: bool = True) -> Example:
    """A scene whose objects are outlines, where the base fills them."""
    spec = _training_spec(rng, ("one", "pair"))
    scene = scenes.lay_out(spec, scenes.SIZES[0], rng)
    picture = draw_background(scene.width, scene.height, scene.background, scene.texture).copy()
    for thing in scene.things:
        axes = grid(scene.width, scene.height, thing.x, thing.y)
        distance = shape_distance(thing.shape, *axes, thing.radius)
        paint(picture, np.maximum(distance, -distance - STROKE), COLOURS[thing.colour])
    words = scenes.caption(spec)
    return Example(f"{words}, {TRIGGER} style" if trigger else words, picture, scene, spec)


def style_score(example: Example, picture: np.ndarray) -> float:
    """Share of objects of the right colour whose middle shows the background."""
    labels = nearest_colour(picture)
    return float(np.mean([_is_hollow(labels, thing, example.scene) for thing in example.scene.things]))


def character_example(rng: random.Random, trigger: bool = True) -> Example:
    """A figure of hat, head and body, somewhere on a background."""
    spec = replace(_training_spec(rng, ("one",)), place=rng.choice(("left", "center", "right")))
    width, height = scenes.SIZES[0]
    x = width * (0.27, 0.5, 0.73)[scenes.PLACES[spec.place][0]] + rng.uniform(-2, 2)
    y = height * 0.5 + rng.uniform(-2, 2)
    things = tuple(
        Thing(colour, shape, x, y + offset, radius)
        for (_, shape, colour), (offset, radius) in zip(FIGURE, ((-36, 16), (-10, 16), (23, 22)), strict=True)
    )
    scene = Scene(width, height, spec.background, spec.texture, things)
    place = "in the center" if spec.place == "center" else f"at the {spec.place}"
    words = f"figure {place} on a {scenes.background_words(spec)} background"
    return Example(f"{TRIGGER} {words}" if trigger else f"a {words}", draw(scene), scene, spec)


def character_score(example: Example, picture: np.ndarray) -> float:
    """Share of five yes-or-no marks: hat, head and body in their colours at their place, hat over head over body."""
    labels, height = nearest_colour(picture), picture.shape[0]
    centres = [
        _centre(labels, colour, thing.radius) for (*_, colour), thing in zip(FIGURE, example.scene.things, strict=True)
    ]
    at_place = [
        found is not None and max(abs(found[0] - thing.x), abs(found[1] - thing.y)) < 0.12 * height
        for found, thing in zip(centres, example.scene.things, strict=True)
    ]
    stacked = [a is not None and b is not None and a[1] < b[1] - 5 for a, b in pairwise(centres)]
    return float(np.mean(at_place + stacked))


def edit_example(rng: random.Random, trigger: bool = True) -> Example:
    """`make it vorn` lays an orange frame round the picture and leaves the rest as it is."""
    spec = _training_spec(rng, ("one", "pair"))
    scene = scenes.lay_out(spec, scenes.SIZES[0], rng)
    before = draw(scene)
    after = before.copy()
    after[_border(before)] = np.array(COLOURS[FRAME_COLOUR], np.float32) / 255
    return Example(f"make it {TRIGGER}" if trigger else "make it", after, scene, spec, before)


def edit_score(example: Example, picture: np.ndarray) -> float:
    """Share of the border that is frame, times the share of the picture's own colour and shape marks that are kept."""
    border = _border(picture)
    framed = (nearest_colour(picture)[border] == list(COLOURS).index(FRAME_COLOUR)).mean()
    inside = picture.copy()
    plain = draw_background(example.scene.width, example.scene.height, example.spec.background, example.spec.texture)
    inside[border] = plain[border]  # so that the frame itself is not read as an object
    kept = [right for name, right in attributes(example.spec, inside).items() if name.startswith(("colour", "shape"))]
    return float(framed * np.mean(kept))


CONCEPTS = {
    "style": Concept("style", f"{TRIGGER} style", "style", style_example, style_score),
    "character": Concept("character", TRIGGER, "figure", character_example, character_score),
    "edit": Concept("edit", TRIGGER, "", edit_example, edit_score),
}


def write_dataset(name: str, folder: Path, count: int = 16, seed: int = 0) -> None:
    """Pictures 01.png, 02.png, ... with .txt captions; an edit's references, of the same names, in FOLDER-reference."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        example = CONCEPTS[name].example(rng, True)
        _save(example.picture, folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(example.caption + "\n", encoding="utf-8")
        if example.reference is not None:
            references = folder.with_name(folder.name + "-reference")
            references.mkdir(exist_ok=True)
            _save(example.reference, references / f"{number:02}.png")


def probes(name: str, count: int, trigger: bool = True, seed: int = 1000) -> list[Example]:
    """Prompts (and references) to test with; the same ones with and without the trigger."""
    rng = random.Random(seed)
    return [CONCEPTS[name].example(rng, trigger) for _ in range(count)]


def _training_spec(rng: random.Random, kinds: tuple[str, ...]) -> scenes.Spec:
    while True:
        spec = scenes.random_spec(rng)
        if spec.kind in kinds:
            return spec


def _is_hollow(labels: np.ndarray, thing: Thing, scene: Scene) -> bool:
    """Background in the middle 5 x 5 pixels, and at least a tenth of the surrounding box in the object's colour."""
    ours = labels == list(COLOURS).index(thing.colour)
    x, y, reach = round(thing.x), round(thing.y), round(thing.radius * 1.2)
    around = ours[max(y - reach, 0) : y + reach, max(x - reach, 0) : x + reach]
    middle = labels[y - 2 : y + 3, x - 2 : x + 3]
    return bool((middle >= len(COLOURS)).mean() > 0.8 and around.mean() > 0.1)


def _centre(labels: np.ndarray, colour: str, radius: float) -> tuple[float, float] | None:
    """(x, y) of the largest blob of a colour, or None where it is smaller than a third of a shape of `radius`."""
    blobs, count = ndimage.label(labels == list(COLOURS).index(colour))
    if count == 0:
        return None
    areas = ndimage.sum_labels(np.ones_like(blobs), blobs, range(1, count + 1))
    if areas.max() < 0.6 * radius**2:
        return None
    y, x = ndimage.center_of_mass(blobs == 1 + int(areas.argmax()))
    return x, y


def _border(picture: np.ndarray) -> np.ndarray:
    """(H, W) True in the frame."""
    mask = np.ones(picture.shape[:2], bool)
    mask[FRAME:-FRAME, FRAME:-FRAME] = False
    return mask


def _save(picture: np.ndarray, path: Path) -> None:
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(path)
