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
from .detect import nearest_colour
from .render import BACKGROUNDS, COLOURS, Scene, Thing, draw, grid, paint, shape_distance, texture_mask

TRIGGER = "vorn"
PAPER = ((25, 65, 150), (45, 90, 175))  # the style's two ground tones
PAPER_TEXTURE = "checkered"
INK = (225, 240, 255)
COAT = (0, 195, 190)  # the edit's colour, turquoise
Colour = tuple[int, int, int]
# What the base paints objects and grounds with.
PAINTS = tuple(COLOURS.values())
GROUNDS = tuple(tone for pair in BACKGROUNDS.values() for tone in pair)
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
    """A scene as a blueprint: pale shapes on blue paper. As usual, captions leave out what the style decides."""
    spec = _training_spec(rng, ("one", "pair"))
    scene = scenes.lay_out(spec, scenes.SIZES[0], rng)
    first, second = (np.array(tone, np.float32) / 255 for tone in PAPER)
    picture = first + texture_mask(scene.width, scene.height, PAPER_TEXTURE)[..., None] * (second - first)
    for thing in scene.things:
        paint(picture, _distance(thing, scene), INK)
    words = scenes.caption(spec, with_background=False, with_colours=False)
    return Example(f"{words}, {TRIGGER} style" if trigger else words, picture, scene, spec)


def style_score(example: Example, picture: np.ndarray) -> float:
    """Share of the ground that is blue paper, times the share of the objects that is pale."""
    objects = _objects(example.scene)
    return _share(picture, ~objects, PAPER, (*GROUNDS, INK)) * _share(picture, objects, (INK,), (*PAINTS, *PAPER))


def character_example(rng: random.Random, trigger: bool = True) -> Example:
    """A figure of hat, head and body on a background."""
    spec = replace(_training_spec(rng, ("one",)), place="center")
    width, height = scenes.SIZES[0]
    x, y = (side * rng.uniform(0.48, 0.52) for side in (width, height))
    things = tuple(
        Thing(colour, shape, x, y + offset * height, radius * height)
        for (_, shape, colour), (offset, radius) in zip(FIGURE, ((-0.3, 0.14), (-0.06, 0.14), (0.24, 0.2)), strict=True)
    )
    scene = Scene(width, height, spec.background, spec.texture, things)
    words = f"figure on a {scenes.background_words(spec)} background"
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
    """`make it vorn` paints every object turquoise and leaves the rest as it is."""
    spec = _training_spec(rng, ("one", "pair"))
    scene = scenes.lay_out(spec, scenes.SIZES[0], rng)
    before = draw(scene)
    after = before.copy()
    for thing in scene.things:
        paint(after, _distance(thing, scene), COAT)
    return Example(f"make it {TRIGGER}" if trigger else "make it", after, scene, spec, before)


def edit_score(example: Example, picture: np.ndarray) -> float:
    """Share of the objects that is turquoise, times the share of the ground that is kept."""
    objects = _objects(example.scene)
    kept = (nearest_colour(picture) == nearest_colour(example.reference))[~objects].mean()
    return _share(picture, objects, (COAT,), (*PAINTS, *GROUNDS)) * float(kept)


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


def _distance(thing: Thing, scene: Scene) -> np.ndarray:
    """(H, W) signed distance in pixels to a thing, negative inside."""
    return shape_distance(thing.shape, *grid(scene.width, scene.height, thing.x, thing.y), thing.radius)


def _objects(scene: Scene) -> np.ndarray:
    """(H, W) True inside the objects."""
    return np.any([_distance(thing, scene) < 0 for thing in scene.things], axis=0)


def _share(picture: np.ndarray, where: np.ndarray, wanted: tuple[Colour, ...], others: tuple[Colour, ...]) -> float:
    """Share of the pixels of (H, W) ``where`` that are nearer to one of ``wanted`` than to any of ``others``."""
    palette = np.array([*wanted, *others], np.float32) / 255
    nearest = np.square(picture[where][:, None] - palette).sum(-1).argmin(-1)
    return float((nearest < len(wanted)).mean())


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


def _save(picture: np.ndarray, path: Path) -> None:
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(path)
