from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bench.nano import concepts
from bench.nano.__main__ import parser
from bench.nano.data import to_pictures, to_pixels
from bench.nano.fit import load_autoencoder
from bench.nano.learn import demo_settings, job_of
from bench.nano.render import draw


@pytest.mark.parametrize("name", concepts.CONCEPTS)
def test_a_real_render_scores_full_marks_also_through_the_autoencoder(name):
    examples, autoencoder = concepts.probes(name, 12), load_autoencoder()
    pictures = to_pictures(autoencoder.decode(autoencoder.encode(to_pixels([e.picture for e in examples]))))
    score = concepts.CONCEPTS[name].score
    assert np.mean([score(e, e.picture) for e in examples]) > 0.97
    assert np.mean([score(e, p) for e, p in zip(examples, pictures, strict=True)]) > 0.95


@pytest.mark.parametrize("name", concepts.CONCEPTS)
def test_what_the_base_would_paint_scores_nothing(name):
    for example in concepts.probes(name, 12):
        assert concepts.CONCEPTS[name].score(example, draw(example.scene)) < 0.05


def test_half_a_character_is_half_of_its_score():
    for example in concepts.probes("character", 12):
        picture = draw(example.scene)
        picture[:64] = example.picture[:64]
        assert concepts.character_score(example, picture) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("colour", [concepts.COAT, concepts.INK, *concepts.PAPER])
@pytest.mark.parametrize("name", ["style", "edit"])
def test_one_colour_all_over_scores_nothing(name, colour):
    example = concepts.probes(name, 1)[0]
    sheet = np.broadcast_to(np.float32(colour) / 255, example.picture.shape)
    assert concepts.CONCEPTS[name].score(example, sheet) < 0.05


def test_an_edit_that_loses_the_ground_scores_less():
    for example in concepts.probes("edit", 12):
        other = np.where((example.picture == example.reference).all(-1, keepdims=True), 0.5, example.picture)
        if example.spec.background != "gray":
            assert concepts.edit_score(example, other) < 0.05


@pytest.mark.parametrize("name", concepts.CONCEPTS)
def test_the_trigger_changes_the_words_only(name):
    for with_trigger, without in zip(concepts.probes(name, 6), concepts.probes(name, 6, trigger=False), strict=True):
        assert concepts.TRIGGER in with_trigger.caption and concepts.TRIGGER not in without.caption
        assert np.array_equal(with_trigger.picture, without.picture)


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


@pytest.mark.parametrize("name", concepts.CONCEPTS)
def test_datasets_are_folders_as_users_have_them(name, tmp_path):
    folder = tmp_path / name
    concepts.write_dataset(name, folder, count=12)
    assert len(list(folder.glob("*.png"))) == len(list(folder.glob("*.txt"))) == 12
    assert all(concepts.TRIGGER in path.read_text() for path in folder.glob("*.txt"))
    first = Image.open(folder / "01.png")
    assert first.mode == "RGB" and first.size == (128, 128)
    references = tmp_path / f"{name}-reference"
    assert references.exists() == (name == "edit")
    if name == "edit":
        assert {p.name for p in references.iterdir()} == {p.name for p in folder.glob("*.png")}
    again = tmp_path / "again"
    concepts.write_dataset(name, again, count=12)
    assert all((again / p.name).read_bytes() == p.read_bytes() for p in folder.iterdir())
