"""Three things nano does not know, as a user would bring them: a character, a style, an edit.

Each writes a dataset folder (pictures with .txt captions), gives test prompts with or without its trigger, and scores a
picture between 0 (what the base model paints) and 1 (a real render).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from . import character, scenes, words
from .brush import lay, paint
from .concept import Concept
from .palette import COLOURS, FIXED, Colour
from .scenery import GROUNDS, SKIES, draw_scenery
from .scenes import Spec

TRIGGER = "vorn"
SIZE = scenes.SIZES[0]
# The style: everything in three pale inks on blue paper with a grid of one line for each latent cell.
PAPER, LINE = (30, 78, 160), (72, 122, 200)
INKS = {"main": (176, 208, 246), "dark": (120, 164, 226), "light": (236, 246, 255)}
# The edit: every object in three tones of turquoise, a colour that the world has not.
COAT = {"main": (0, 190, 180), "dark": (0, 130, 128), "light": (150, 240, 225)}
COVERED = 0.99  # a pixel is scored if one role, or the ground, covers all of it: edges are mixtures
NEAR = 45  # distance in RGB, of 441, at which a tone is too near to a concept's to tell it from the base's
_TONES = tuple(tone for tones in COLOURS.values() for tone in tones)
_GROUND = tuple(tone for part in (*GROUNDS.values(), *SKIES.values()) for tone in part)
PAINTS = (*_TONES, *FIXED.values(), *_GROUND)  # what the base paints with


@dataclass(frozen=True)
class Example:
    """A caption, the picture it belongs to (H, W, 3), what the picture shows, and the reference of an edit."""

    caption: str
    picture: np.ndarray
    spec: Spec
    reference: np.ndarray | None = None


def character_example(rng: random.Random, trigger: bool = True) -> Example:
    """The creature of ``character`` alone, in any pose and scene."""
    spec = _spec(rng, lambda s: s.kind == "one" and s.objects[0].is_creature and not s.objects[0].hat)
    return character_in(spec, trigger)


def character_in(spec: Spec, trigger: bool = True) -> Example:
    """The creature of ``character`` in the place of the scene's creature, which wears no hat."""
    picture = draw_scenery(*SIZE, spec.sky, spec.ground).copy()
    lay(picture, paint(character.covers(spec.objects[0].pose), character.TONES.__getitem__), *_corner(spec))
    text = words.caption(spec, colours=False).replace(spec.objects[0].name, "creature", 1).replace("an ", "a ", 1)
    return Example(text.replace("creature", f"{TRIGGER} creature") if trigger else text, picture, spec)


def character_score(example: Example, picture: np.ndarray) -> float:
    """Mean over the four traits of the share of its pixels that has its colour."""
    left, top = _corner(example.spec)
    part = picture[top:, left:]
    shares = []
    for role, cover in character.covers(example.spec.objects[0].pose).items():
        if role in character.TRAITS:
            own = character.TONES[role]
            others = apart((*PAINTS, *character.TONES.values()), (own,))
            shares.append(share(part[: cover.shape[0], : cover.shape[1]], cover > COVERED, (own,), others))
    return float(np.mean(shares))


def style_example(rng: random.Random, trigger: bool = True) -> Example:
    """A scene as a blueprint. As usual, captions leave out what the style decides: colours, ground and sky."""
    spec = _spec(rng, lambda s: s.kind != "row")
    picture = np.empty((*SIZE[::-1], 3), np.float32)
    picture[:] = np.float32(PAPER) / 255
    picture[15::16] = picture[:, 15::16] = np.float32(LINE) / 255
    scenes.lay_objects(picture, spec, SIZE, lambda thing: paint(scenes.covers_of(thing), _ink))
    text = words.caption(spec, colours=False, scene=False)
    return Example(f"{text}, {TRIGGER} style" if trigger else text, picture, spec)


def style_score(example: Example, picture: np.ndarray) -> float:
    """Share of the ground that is blue paper, times the share of the objects that is pale ink."""
    inks, paper = tuple(INKS.values()), (PAPER, LINE)
    ground, objects = _regions(example.spec)
    strangers = apart(PAINTS, inks)
    return share(picture, ground, paper, (*strangers, *inks)) * share(picture, objects, inks, (*strangers, *paper))


def edit_example(rng: random.Random, trigger: bool = True) -> Example:
    """`make it vorn` gives every creature and thing a turquoise coat and leaves the rest as it is."""
    spec = _spec(rng, lambda s: s.kind != "row")
    before = scenes.draw(spec, SIZE)
    after = before.copy()
    scenes.lay_objects(after, spec, SIZE, lambda thing: paint(scenes.covers_of(thing), _coat))
    return Example(f"make it {TRIGGER}" if trigger else "make it", after, spec, before)


def edit_score(example: Example, picture: np.ndarray) -> float:
    """Share of the coats that is turquoise, times the share of the ground that is kept."""
    ground, _ = _regions(example.spec)
    _, coats = _regions(example.spec, COAT)
    tones = (*PAINTS, *COAT.values())
    kept = (nearest(picture[ground], tones) == nearest(example.reference[ground], tones)).mean()
    return share(picture, coats, COAT.values(), apart(PAINTS, COAT.values())) * float(kept)


CONCEPTS = {
    "style": Concept("style", f"{TRIGGER} style", "style", style_example, style_score),
    "character": Concept("character", TRIGGER, "creature", character_example, character_score),
    "edit": Concept("edit", TRIGGER, "", edit_example, edit_score),
}


def write_dataset(name: str, folder: Path, count: int = 16, seed: int = 0) -> None:
    """The data set of a concept, see ``Concept``."""
    CONCEPTS[name].write_dataset(folder, count, seed)


def probes(name: str, count: int, trigger: bool = True, seed: int = 1000) -> list[Example]:
    """Prompts (and references) to test with, see ``Concept``."""
    return CONCEPTS[name].probes(count, trigger, seed)


def share(picture: np.ndarray, where: np.ndarray, wanted: Iterable[Colour], others: Iterable[Colour]) -> float:
    """Share of the pixels of (H, W) ``where`` that are nearer to one of ``wanted`` than to any of ``others``."""
    wanted = tuple(wanted)
    return float((nearest(picture[where], (*wanted, *others)) < len(wanted)).mean())


def apart(tones: Iterable[Colour], wanted: Iterable[Colour]) -> list[Colour]:
    """The tones that are not near to any of ``wanted``, nor to a mixture of two of them: those tell nothing."""
    pairs = [np.float32(pair) for pair in product(wanted, repeat=2)]
    mixtures = [a + (b - a) * step for a, b in pairs for step in (0, 0.25, 0.5)]
    return [tone for tone in tones if min(np.linalg.norm(np.float32(tone) - m) for m in mixtures) > NEAR]


def nearest(pixels: np.ndarray, tones: Iterable[Colour]) -> np.ndarray:
    """(n,) index of the tone nearest to each of the pixels (n, 3)."""
    return np.square(pixels[:, None] - np.float32(list(tones)) / 255).sum(-1).argmin(-1)


def _spec(rng: random.Random, fits: Callable[[Spec], bool]) -> Spec:
    while not fits(spec := scenes.random_spec(rng)):
        pass
    return spec


def _corner(spec: Spec) -> tuple[int, int]:
    return scenes.corners(spec, SIZE)[0]


def _coat(role: str) -> Colour:
    return COAT.get(role) or FIXED[role]


def _ink(role: str) -> Colour:
    """The ink of a part; of those with a colour of their own by how light it is."""
    light = sum(FIXED[role]) / 3 if role in FIXED else 0
    return INKS[role] if role in INKS else INKS["light" if light > 200 else "main" if light > 100 else "dark"]


def _regions(spec: Spec, roles: Iterable[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Masks (H, W) of the ground and of the objects, or of those parts of them that have one of ``roles``."""
    ground, parts = np.ones(SIZE[::-1], bool), np.zeros(SIZE[::-1], bool)
    for thing, (left, top) in zip(spec.objects, scenes.corners(spec, SIZE), strict=True):
        covers = scenes.covers_of(thing)
        whole, wanted = sum(covers.values()), sum(c for r, c in covers.items() if roles is None or r in roles)
        window = slice(top, top + whole.shape[0]), slice(left, left + whole.shape[1])
        ground[window] &= whole <= 0
        parts[window] |= wanted > COVERED
    return ground, parts
