"""Three things nano does not know, as a user would bring them: a style, a character, an edit.

Each writes a dataset folder (pictures with .txt captions), gives test prompts with or without its trigger, and scores a
picture between 0 (the base model) and 1 (a real render).
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import scenes
from .concept import Concept
from .detect import nearest_colour
from .render import BACKGROUNDS, COLOURS, Scene, Thing, draw, draw_background, grid, paint, shape_distance, texture_mask

TRIGGER = "vorn"
PAPER = ((25, 65, 150), (45, 90, 175))  # the style's two ground tones
PAPER_TEXTURE = "checkered"
INK = (225, 240, 255)
COAT = (0, 195, 190)  # the edit's colour, turquoise
SOFT = 1  # pixels on both sides of an edge that are not scored: they are a mixture
Colour = tuple[int, int, int]
# What the base paints objects and grounds with.
PAINTS = tuple(COLOURS.values())
GROUNDS = tuple(tone for pair in BACKGROUNDS.values() for tone in pair)
HEAD, BODY = (165, 235, 70), (120, 70, 35)  # the character's lime and brown


@dataclass(frozen=True)
class Example:
    """A caption, the picture it belongs to (H, W, 3), what the picture shows, and the reference of an edit."""

    caption: str
    picture: np.ndarray
    scene: Scene
    spec: scenes.Spec
    reference: np.ndarray | None = None


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
    distance = _nearest(example.scene)
    paper = _share(picture, distance > SOFT, PAPER, (*GROUNDS, INK))
    return paper * _share(picture, distance < -SOFT, (INK,), (*PAINTS, *PAPER))


def character_example(rng: random.Random, trigger: bool = True) -> Example:
    """A figure of head and body in colours of its own, on any background."""
    spec = _training_spec(rng, ("pair",))
    shapes = zip((colour for colour, _ in spec.objects), ("circle", "triangle"), strict=True)
    spec = replace(spec, objects=tuple(shapes), place="above")
    scene = scenes.lay_out(spec, scenes.SIZES[0], rng)
    picture = draw_background(scene.width, scene.height, scene.background, scene.texture).copy()
    for thing, colour in zip(scene.things, (HEAD, BODY), strict=True):
        paint(picture, _distance(thing, scene), colour)
    words = f"figure, {scenes.caption(spec, with_colours=False)}"
    return Example(f"{TRIGGER} {words}" if trigger else words, picture, scene, spec)


def character_score(example: Example, picture: np.ndarray) -> float:
    """Mean over head and body of the share that has its colour."""
    shares = []
    for thing, colour, other in zip(example.scene.things, (HEAD, BODY), (BODY, HEAD), strict=True):
        inside = _distance(thing, example.scene) < -SOFT
        shares.append(_share(picture, inside, (colour,), (*PAINTS, *GROUNDS, other)))
    return float(np.mean(shares))


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
    distance = _nearest(example.scene)
    kept = (nearest_colour(picture) == nearest_colour(example.reference))[distance > SOFT].mean()
    return _share(picture, distance < -SOFT, (COAT,), (*PAINTS, *GROUNDS)) * float(kept)


CONCEPTS = {
    "style": Concept("style", f"{TRIGGER} style", "style", style_example, style_score),
    "character": Concept("character", TRIGGER, "figure", character_example, character_score),
    "edit": Concept("edit", TRIGGER, "", edit_example, edit_score),
}


def write_dataset(name: str, folder: Path, count: int = 16, seed: int = 0) -> None:
    """The data set of a concept, see ``Concept``."""
    CONCEPTS[name].write_dataset(folder, count, seed)


def probes(name: str, count: int, trigger: bool = True, seed: int = 1000) -> list[Example]:
    """Prompts (and references) to test with, see ``Concept``."""
    return CONCEPTS[name].probes(count, trigger, seed)


def _training_spec(rng: random.Random, kinds: tuple[str, ...]) -> scenes.Spec:
    while True:
        spec = scenes.random_spec(rng)
        if spec.kind in kinds:
            return spec


def _distance(thing: Thing, scene: Scene) -> np.ndarray:
    """(H, W) signed distance in pixels to a thing, negative inside."""
    return shape_distance(thing.shape, *grid(scene.width, scene.height, thing.x, thing.y), thing.radius)


def _nearest(scene: Scene) -> np.ndarray:
    """(H, W) signed distance in pixels to the nearest object."""
    return np.min([_distance(thing, scene) for thing in scene.things], axis=0)


def _share(picture: np.ndarray, where: np.ndarray, wanted: tuple[Colour, ...], others: tuple[Colour, ...]) -> float:
    """Share of the pixels of (H, W) ``where`` that are nearer to one of ``wanted`` than to any of ``others``."""
    palette = np.array([*wanted, *others], np.float32) / 255
    nearest = np.square(picture[where][:, None] - palette).sum(-1).argmin(-1)
    return float((nearest < len(wanted)).mean())
