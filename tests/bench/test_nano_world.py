"""nano's new world: scenes, words, edits, and the reader that draws to see what a picture shows."""

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from bench.nano.flow import TEXT_LENGTH
from bench.nano.host import token_ids
from bench.nano.world import edits, read, scenes, words
from bench.nano.world.creatures import HATS, POSES, SPECIES
from bench.nano.world.palette import COLOURS
from bench.nano.world.scenery import GROUNDS, SKIES

CAT = scenes.Object("cat", "red", "crown", "waving")
HOUSE = scenes.Object("house", "blue")
FLOWER = scenes.Object("flower", "pink")
ONE = scenes.Spec("one", (CAT,), "left", "day", "meadow")
PAIR = scenes.Spec("pair", (CAT, HOUSE), "", "night", "snow")
ROW = scenes.Spec("row", (FLOWER,) * 3, "", "rain", "city")


def specs(count: int, held_out: bool = False) -> list[scenes.Spec]:
    rng = random.Random(7)
    return [scenes.random_spec(rng, held_out) for _ in range(count)]


def test_captions_say_the_spec():
    assert words.caption(ONE) == "a waving red cat with a crown at the left in a meadow on a sunny day"
    assert words.caption(PAIR) == "a waving red cat with a crown left of a blue house in the snow at night"
    assert words.caption(ROW) == "three pink flowers in a city in the rain"
    assert words.caption(PAIR, colours=False, scene=False) == "a waving cat with a crown left of a house"


def test_different_specs_have_different_captions():
    unique = set(specs(2000))
    assert len({words.caption(spec) for spec in unique}) == len(unique)


@pytest.mark.long
def test_every_word_is_said_in_training_and_fits_into_the_text():
    rng = random.Random(8)
    said = [words.caption(spec, rng) for spec in specs(4000)]
    for name, choices in words.WORDS.items():
        for word in filter(None, choices):
            assert any(word in text or words.plural(word) in text for text in said), (name, word)
    longest = sorted(said, key=len)[-20:]
    assert max(len(token_ids(text)) for text in longest) <= TEXT_LENGTH
    assert len({word for text in said for word in text.split()}) > 180


def test_held_out_specs_are_never_trained_on():
    assert not set(specs(500)) & set(specs(500, held_out=True))
    rng = random.Random(9)
    assert not any(scenes.is_held_out(edits.random_edit(rng)[2]) for _ in range(300))


@pytest.mark.long
@pytest.mark.parametrize("size", scenes.SIZES)
def test_objects_lie_on_the_grid_inside_and_apart(size):
    for spec in specs(300):
        boxes = []
        for thing, (left, top) in zip(spec.objects, scenes.corners(spec, size), strict=True):
            high, wide = scenes.sprite(thing).shape[:2]
            assert left % 8 == 0 and top % 16 == 0 and 0 <= left <= size[0] - wide and 0 <= top <= size[1] - high
            boxes.append((left, left + wide))
        assert all(a[1] <= b[0] for a, b in pairwise(boxes))


def test_an_edit_changes_what_it_names_and_nothing_else():
    rng, kinds = random.Random(5), set()
    for _ in range(400):
        before, told, after = edits.random_edit(rng)
        changed = [name for name in scenes.Spec.__dataclass_fields__ if getattr(before, name) != getattr(after, name)]
        assert len(changed) == 1 and told
        if changed == ["objects"]:
            (old, new), *more = [pair for pair in zip(before.objects, after.objects, strict=True) if len(set(pair)) > 1]
            changed = [name for name in scenes.Object.__dataclass_fields__ if getattr(old, name) != getattr(new, name)]
            assert len(changed) == 1 and not more
        kinds |= set(changed)
    assert kinds == {"name", "colour", "hat", "pose", "place", "sky", "ground"}


def test_drawing_is_deterministic_and_flat():
    first, second = (scenes.draw(PAIR, scenes.SIZES[1]) for _ in range(2))
    assert first.shape == (96, 160, 3) and np.array_equal(first, second)
    assert first.min() >= 0 and first.max() <= 1 + 1e-6
    tones, counts = np.unique((first * 255).round().reshape(-1, 3), axis=0, return_counts=True)
    assert counts[counts > 40].sum() > 0.85 * counts.sum() and len(tones) > 12


@pytest.mark.long
def test_the_reader_reads_real_renders(full_size):
    for i, spec in enumerate(specs(600 if full_size else 15, held_out=True)):
        picture = scenes.draw(spec, scenes.SIZES[i % 3])
        found = read.read(picture)
        assert all(read.attributes(spec, found).values()), words.caption(spec)
        assert read.likeness(picture, found) == pytest.approx(1)


WRONG = [
    ("sky", lambda s: replace(s, sky=other(SKIES, s.sky))),
    ("ground", lambda s: replace(s, ground=other(GROUNDS, s.ground))),
    ("place", lambda s: replace(s, place=other(scenes.PLACES, s.place))),
    ("name 1", lambda s: changed(s, name=other(SPECIES, s.objects[0].name))),
    ("colour 1", lambda s: changed(s, colour=other(COLOURS, s.objects[0].colour))),
    ("hat 1", lambda s: changed(s, hat=other(HATS, s.objects[0].hat))),
    ("pose 1", lambda s: changed(s, pose=other(POSES, s.objects[0].pose))),
]


def other(choices, but):
    return next(name for name in choices if name != but)


def changed(spec, **changes):
    return replace(spec, objects=(replace(spec.objects[0], **changes),))


@pytest.mark.long
@pytest.mark.parametrize("attribute, change", WRONG, ids=[name for name, _ in WRONG])
def test_the_reader_sees_each_wrong_attribute_and_that_alone(attribute, change):
    answers = read.attributes(change(ONE), read.read(scenes.draw(ONE, scenes.SIZES[0])))
    assert [name for name, right in answers.items() if not right] == [attribute]


@pytest.mark.long
def test_the_reader_counts():
    two = replace(ROW, objects=ROW.objects[:2])
    answers = read.attributes(ROW, read.read(scenes.draw(two, scenes.SIZES[1])))
    assert not answers["count"] and not answers["name 3"] and answers["colour 1"] and answers["sky"]
    empty = scenes.draw_scenery(*scenes.SIZES[0], "day", "meadow")
    nothing = read.read(empty)
    told = read.attributes(ONE, nothing)
    assert not nothing.objects and [name for name, right in told.items() if right] == ["sky", "ground"]


def test_likeness_falls_with_errors():
    picture = scenes.draw(PAIR, scenes.SIZES[0])
    noise = np.random.default_rng(0).normal(0, 1, picture.shape)
    values = [read.ssim(picture, picture + strength * noise) for strength in (0, 0.02, 0.1)]
    assert values[0] == pytest.approx(1) and values[0] > values[1] > values[2]
