"""Edits by instruction: one thing of a picture changes, and the words say which and into what."""

from __future__ import annotations

import random
from dataclasses import replace

from .creatures import HATS, POSES, SPECIES
from .palette import COLOURS
from .scenery import GROUNDS, SKIES
from .scenes import PLACES, Object, Spec, is_held_out, random_spec
from .things import STANDING
from .words import Words, article

_POSE_WORDS = {"standing": "stand still", "waving": "wave", "jumping": "jump"}


def random_edit(rng: random.Random, words: Words | None = None) -> tuple[Spec, str, Spec]:
    """(before, instruction, after) of the training part; ``words`` chooses among words that mean the same."""
    words = words or Words()
    while True:
        before = random_spec(rng)
        names = [thing.name for thing in before.objects]
        if before.kind == "row" or len(set(names)) < len(names):
            continue
        change = rng.choice((_recolour, _recolour, _rename, _dress, _pose, _move, _sky, _ground))
        instruction, after = change(before, rng, words)
        if after != before and not is_held_out(after):
            return before, instruction, after


def _recolour(spec: Spec, rng: random.Random, words: Words) -> tuple[str, Spec]:
    i, colour = rng.randrange(len(spec.objects)), rng.choice(list(COLOURS))
    return f"make the {words(spec.objects[i].name)} {words(colour)}", _with(spec, i, colour=colour)


def _rename(spec: Spec, rng: random.Random, words: Words) -> tuple[str, Spec]:
    i = rng.randrange(len(spec.objects))
    old = spec.objects[i]
    kin = SPECIES if old.is_creature else STANDING
    name = rng.choice(list(kin))
    if old.name not in kin or name in [thing.name for thing in spec.objects]:
        return "", spec
    new = words(name)
    return f"turn the {words(old.name)} into {article(new)} {new}", _with(spec, i, name=name)


def _dress(spec: Spec, rng: random.Random, words: Words) -> tuple[str, Spec]:
    i, hat = _creature(spec, rng), rng.choice(list(HATS))
    if i is None:
        return "", spec
    who = words(spec.objects[i].name)
    instruction = f"give the {who} {words(hat)}" if hat else f"take off the hat of the {who}"
    return instruction, _with(spec, i, hat=hat)


def _pose(spec: Spec, rng: random.Random, words: Words) -> tuple[str, Spec]:
    i, pose = _creature(spec, rng), rng.choice(POSES)
    if i is None:
        return "", spec
    return f"let the {words(spec.objects[i].name)} {_POSE_WORDS[pose]}", _with(spec, i, pose=pose)


def _move(spec: Spec, rng: random.Random, words: Words) -> tuple[str, Spec]:
    if spec.kind != "one":
        return "", spec
    place = rng.choice(PLACES)
    return f"move the {words(spec.objects[0].name)} to the {place}", replace(spec, place=place)


def _sky(spec: Spec, rng: random.Random, words: Words) -> tuple[str, Spec]:
    sky = rng.choice(list(SKIES))
    return f"show it {words(sky)}", replace(spec, sky=sky)


def _ground(spec: Spec, rng: random.Random, words: Words) -> tuple[str, Spec]:
    ground = rng.choice(list(GROUNDS))
    return f"show it {words(ground)}", replace(spec, ground=ground)


def _creature(spec: Spec, rng: random.Random) -> int | None:
    found = [i for i, thing in enumerate(spec.objects) if thing.is_creature]
    return rng.choice(found) if found else None


def _with(spec: Spec, index: int, **changes: str) -> Spec:
    objects: list[Object] = list(spec.objects)
    objects[index] = replace(objects[index], **changes)
    return replace(spec, objects=tuple(objects))
