"""What nano can be taught: data sets, scores of colours where they belong, and the job that teaches it."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.nano import slide
from bench.nano.__main__ import parser
from bench.nano.data import to_pictures, to_pixels
from bench.nano.learn import demo_settings, job_of
from bench.nano.score import autoencoder_of
from bench.nano.world import character, concepts, scenes, words

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["character", *(pytest.param(n, marks=pytest.mark.long) for n in ("style", "edit"))])
def test_a_real_render_scores_full_marks_and_the_base_nothing(name):
    score = concepts.CONCEPTS[name].score
    for example in concepts.probes(name, 8):
        assert score(example, example.picture) > 0.97
        assert score(example, scenes.draw(example.spec, concepts.SIZE)) < 0.03


@pytest.mark.long
@pytest.mark.parametrize("name, least", [("style", 0.95), ("edit", 0.95), ("character", 0.75)])
def test_a_render_keeps_its_marks_through_the_autoencoder(name, least):
    examples, autoencoder = concepts.probes(name, 6), autoencoder_of()
    pictures = to_pictures(autoencoder.decode(autoencoder.encode(to_pixels([e.picture for e in examples]))))
    assert np.mean([concepts.CONCEPTS[name].score(*each) for each in zip(examples, pictures, strict=True)]) > least


@pytest.mark.parametrize("trait", character.TRAITS)
def test_each_trait_is_a_quarter_of_the_character(trait):
    for example in concepts.probes("character", 4):
        left, top = scenes.corners(example.spec, concepts.SIZE)[0]
        cover = character.covers(example.spec.objects[0].pose)[trait] > 0
        picture = example.picture.copy()
        picture[top : top + 64, left : left + 48][cover] = np.float32(concepts.COLOURS["red"][0]) / 255
        assert concepts.character_score(example, picture) == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("name, tone", [("style", concepts.PAPER), ("style", concepts.INKS["main"]),
                                        ("edit", concepts.COAT["main"])])  # fmt: skip
def test_one_colour_all_over_scores_nothing(name, tone):
    example = concepts.probes(name, 1)[0]
    assert concepts.CONCEPTS[name].score(example, np.full_like(example.picture, 1) * np.float32(tone) / 255) < 0.05


@pytest.mark.long
def test_an_edit_that_loses_the_ground_scores_less():
    for example in concepts.probes("edit", 6):
        ground, _ = concepts._regions(example.spec)
        other = example.picture.copy()
        other[ground] = np.float32(concepts.FIXED["rose"]) / 255
        assert concepts.edit_score(example, other) < 0.05


@pytest.mark.parametrize("name", concepts.CONCEPTS)
def test_the_trigger_changes_the_words_only(name):
    for with_trigger, without in zip(concepts.probes(name, 6), concepts.probes(name, 6, trigger=False), strict=True):
        assert concepts.TRIGGER in with_trigger.caption and concepts.TRIGGER not in without.caption
        assert np.array_equal(with_trigger.picture, without.picture)


@pytest.mark.parametrize("name", concepts.CONCEPTS)
def test_datasets_are_folders_as_users_have_them(name, tmp_path):
    concepts.write_dataset(name, tmp_path / name, count=4)
    assert {path.name for path in (tmp_path / name).iterdir()} == {f"0{n}.{kind}" for n in range(1, 5)
                                                                  for kind in ("png", "txt")}  # fmt: skip
    assert all(concepts.TRIGGER in path.read_text() for path in (tmp_path / name).glob("*.txt"))
    first = Image.open(tmp_path / name / "01.png")
    assert first.mode == "RGB" and first.size == (128, 128)
    references = tmp_path / f"{name}-reference"
    assert references.exists() == (name == "edit") and (name != "edit" or len(list(references.iterdir())) == 4)
    concepts.write_dataset(name, tmp_path / "twice" / name, count=4)
    assert all((tmp_path / "twice" / name / p.name).read_bytes() == p.read_bytes() for p in (tmp_path / name).iterdir())


@pytest.mark.parametrize("name", concepts.CONCEPTS)
def test_the_shipped_data_sets_are_what_is_drawn_here_and_have_no_picture_twice(name, tmp_path):
    concepts.write_dataset(name, tmp_path / name)
    drawn, shipped = sorted((tmp_path / name).iterdir()), sorted((ROOT / "datasets" / name).iterdir())
    assert [path.name for path in shipped] == [path.name for path in drawn] and len(drawn) == 32
    content = {path: np.asarray(Image.open(path)).tobytes() for path in (*drawn, *shipped) if path.suffix == ".png"}
    content |= {path: path.read_text() for path in (*drawn, *shipped) if path.suffix == ".txt"}
    assert [content[path] for path in shipped] == [content[path] for path in drawn]
    assert len({content[path] for path in shipped if path.suffix == ".png"}) == 16


def test_learn_takes_settings_as_the_terminal_does(tmp_path):
    plain = job_of("style", 3, tmp_path).training
    assert (plain.steps, plain.seed, plain.validation_items) == (demo_settings()["steps"], 3, 0)
    asked = ["steps=7", "training.routing.selection_ratio=0.5", "dataset.caption_options.dropout=0.1"]
    changed = job_of("style", 3, tmp_path, asked)
    routing = replace(plain.routing, selection_ratio=0.5)
    assert changed.training == replace(plain, steps=7, routing=routing)
    assert changed.dataset[0].caption_options.dropout == 0.1
    options = parser().parse_args(["learn", "--set", "steps=7", "--set", "seed=1"])
    assert options.set == ["steps=7", "seed=1"]


def test_pairs_of_a_slider_differ_in_size_alone(tmp_path):
    spec = slide.one_object(random.Random(3))
    small, plain, large = (slide.of_size(spec, factor) for factor in (slide.SMALL, 1, slide.LARGE))
    assert np.abs(plain - scenes.draw(spec, slide.SIZE)).max() < 1e-6
    assert 1.6 * slide.covered(spec, small) < slide.covered(spec, plain) < slide.covered(spec, large) / 1.2
    assert slide.covered(spec, slide.empty(spec)) == 0
    dataset = slide.write_pairs(tmp_path, count=2)
    assert (dataset["folder"], dataset["references"]) == (tmp_path / "after", [tmp_path / "before"])
    assert {p.name for p in (tmp_path / "before").iterdir()} == {"01.png", "02.png"}
    assert {p.suffix for p in (tmp_path / "after").iterdir()} == {".png", ".txt"}


def test_a_slider_of_prompts_is_measured_on_captions_that_leave_the_sky_open(tmp_path):
    spec = slide.one_object(random.Random(3))
    day, night = (scenes.draw(replace(spec, sky=sky), slide.SIZE) for sky in ("day", "night"))
    assert slide.brightness(spec, day) > slide.brightness(spec, night) + 20
    assert slide.brightness(spec, np.ones_like(day)) == 100
    assert words.caption(spec).startswith(slide.without_sky(spec) + " ")
    assert not any(word in slide.without_sky(spec) for sky in concepts.SKIES for word in words.WORDS[sky])
    dataset = slide.write_scenes(tmp_path, count=2)
    assert {p.name for p in dataset["folder"].iterdir()} == {"01.png", "01.txt", "02.png", "02.txt"}
