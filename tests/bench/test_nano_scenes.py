import random
from dataclasses import replace

import numpy as np
import pytest

from bench.nano import scenes
from bench.nano.adherence import attributes
from bench.nano.data import edit_pair
from bench.nano.render import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, draw
from bench.nano.scenes import Spec


def specs(count: int, held_out: bool = False) -> list[Spec]:
    rng = random.Random(7)
    return [scenes.random_spec(rng, held_out) for _ in range(count)]


@pytest.mark.parametrize("size", scenes.SIZES)
def test_the_scorer_reads_real_renders(size):
    rng = random.Random(1)
    answers = [
        answer for spec in specs(40) for answer in attributes(spec, draw(scenes.lay_out(spec, size, rng))).values()
    ]
    assert np.mean(answers) >= 0.99


WRONG = [
    ("background", lambda s: replace(s, background=other(BACKGROUNDS, s.background))),
    ("texture", lambda s: replace(s, texture=other(TEXTURES, s.texture))),
    ("colour", lambda s: replace(s, objects=((other(COLOURS, s.objects[0][0]), s.objects[0][1]), *s.objects[1:]))),
    ("shape", lambda s: replace(s, objects=((s.objects[0][0], other(SHAPES, s.objects[0][1])), *s.objects[1:]))),
    ("place", lambda s: replace(s, place=other(scenes.PLACES, s.place)) if s.kind == "one" else s),
    ("relation", lambda s: replace(s, place=other(scenes.RELATIONS, s.place)) if s.kind == "pair" else s),
]


def other(choices, but):
    return next(name for name in choices if name != but)


@pytest.mark.parametrize("attribute, change", WRONG, ids=[name for name, _ in WRONG])
def test_the_scorer_sees_each_wrong_attribute(attribute, change):
    rng, seen = random.Random(2), 0
    for spec in specs(40):
        wrong = change(spec)
        if wrong == spec or (spec.kind == "pair" and spec.objects[0] == spec.objects[1]):
            continue
        answers = attributes(wrong, draw(scenes.lay_out(spec, scenes.SIZES[0], rng)))
        named = [right for name, right in answers.items() if name.split()[0] == attribute]
        # Two objects can be matched either way round, so that another of a pair's marks may take the blame.
        assert not all(answers.values()) and (spec.kind == "pair" or not all(named)), scenes.caption(spec)
        seen += 1
    assert seen > 5


def test_an_empty_picture_has_no_objects():
    spec = Spec("many", (("red", "circle"),), "row", 3, "white", "plain")
    answers = attributes(spec, np.full((128, 128, 3), 245 / 255, np.float32))
    assert answers == {
        "count": False,
        "colour": False,
        "shape": False,
        "arrangement": False,
        "background": True,
        "texture": True,
    }


def test_captions_say_the_spec():
    many = Spec("many", (("orange", "cross"),), "column", 3, "pink", "dotted")
    assert scenes.caption(many) == "three orange crosses in a column on a dotted pink background"
    pair = Spec("pair", (("orange", "cross"), ("red", "square")), "left of", 2, "white", "plain")
    assert scenes.caption(pair) == "an orange cross left of a red square on a white background"
    one = Spec("one", (("blue", "circle"),), "center", 1, "gray", "striped")
    assert scenes.caption(one) == "a blue circle in the center on a striped gray background"
    assert scenes.caption(one, with_place=False, with_background=False) == "a blue circle"
    assert scenes.caption(pair, with_background=False, with_colours=False) == "a cross left of a square"
    assert scenes.caption(many, with_background=False, with_colours=False) == "three crosses in a column"


def test_different_specs_have_different_captions():
    unique = set(specs(2000))
    assert len({scenes.caption(spec) for spec in unique}) == len(unique)


def test_held_out_specs_are_never_trained_on():
    assert not set(specs(500)) & set(specs(500, held_out=True))
    assert 0.03 < np.mean([scenes.is_held_out(scenes._any_spec(random.Random(i))) for i in range(2000)]) < 0.07


@pytest.mark.parametrize("size", scenes.SIZES)
def test_objects_lie_inside_and_apart(size):
    rng = random.Random(4)
    for spec in specs(300):
        things = scenes.lay_out(spec, size, rng).things
        assert len(things) == spec.count
        for thing in things:
            assert 0.9 * thing.radius <= thing.x <= size[0] - 0.9 * thing.radius
            assert 0.9 * thing.radius <= thing.y <= size[1] - 0.9 * thing.radius
        gaps = [
            max(abs(a.x - b.x), abs(a.y - b.y)) - a.radius - b.radius for i, a in enumerate(things) for b in things[:i]
        ]
        assert all(gap > 1 for gap in gaps)


def test_an_edit_changes_what_it_names_and_nothing_else():
    rng = random.Random(5)
    for _ in range(300):
        before, words, after = scenes.random_edit(rng)
        changed = [name for name in Spec.__dataclass_fields__ if getattr(before, name) != getattr(after, name)]
        assert len(changed) == 1 and words
        if changed == ["objects"]:
            assert sum(a != b for a, b in zip(before.objects, after.objects, strict=True)) == 1


def test_edit_pictures_share_their_layout():
    rng = random.Random(6)
    for _ in range(40):
        first, words, second = edit_pair(rng)
        share = (np.abs(first - second).max(-1) > 0.02).mean()
        assert share > 0 and ("background" in words or share < 0.3)


def test_drawing_is_deterministic():
    spec = specs(1)[0]
    first, second = (draw(scenes.lay_out(spec, scenes.SIZES[1], random.Random(9))) for _ in range(2))
    assert first.shape == (96, 160, 3) and np.array_equal(first, second)
