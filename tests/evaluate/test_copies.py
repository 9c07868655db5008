"""Copies of training pictures among previews: planted ones are found and told once, other pictures are not."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch
from test_previews import ONE, SHORT

from bench.encoding import encode_text
from flux2_train import events
from flux2_train.data.samples import samples
from flux2_train.evaluate.copies import FEWEST, NEAR, TrainingPictures, warnings_of
from flux2_train.events import Nearest, PreviewPicture
from flux2_train.runs.prepare import new_trainer
from flux2_train.train.preview_request import PreviewRequest


@pytest.fixture(scope="module")
def whole(robot):
    """The robots' real latents, one of each file."""
    found = samples(robot.embeds, robot.latents)
    first = {item.view.digest: place for place, item in reversed(list(enumerate(found.items)))}
    return found.only(sorted(first.values()))


def test_a_copy_of_each_training_picture_is_found(whole):
    pictures, generator = TrainingPictures(whole), torch.Generator().manual_seed(0)
    for item in whole.items:
        latent = whole.latents[item.view]
        noise = torch.randn(latent.shape, generator=generator)
        found = pictures.nearest(latent + 0.05 * latent.std() * noise, base=noise)
        assert (found.name, found.copied) == (item.path.name, True) and found.distance < NEAR / 2


def test_pictures_that_were_left_out_are_no_copies(whole):
    for place, item in enumerate(whole.items):
        others = whole.only([i for i in range(len(whole)) if i != place])
        found = TrainingPictures(others).nearest(whole.latents[item.view])
        assert not found.copied and found.distance > NEAR, item.path.name


def test_what_the_base_model_paints_as_well_is_no_copy(whole):
    latent = whole.latents[whole.items[0].view]
    found = TrainingPictures(whole).nearest(latent, base=latent)
    assert found.distance == pytest.approx(0, abs=1e-3) and not found.copied


def test_the_distance_is_in_those_to_the_nearest_other_file(whole):
    """By hand, where the latents are as large as the grid or smaller; crops of one file do not count as its copies."""
    flat = torch.stack([torch.nn.functional.adaptive_avg_pool2d(whole.latents[i.view], 8) for i in whole.items])
    between = [[(a - b).square().sum().sqrt().item() for b in flat] for a in flat]
    nearest = [min(row[:n] + row[n + 1 :]) for n, row in enumerate(between)]
    painted = torch.randn(1, 128, 4, 6, generator=torch.Generator().manual_seed(1))
    placed = torch.nn.functional.adaptive_avg_pool2d(painted, 8)
    distances = [(placed[0] - each[0]).square().sum().sqrt().item() for each in flat]
    found = TrainingPictures(whole).nearest(painted)
    assert found.name == whole.items[distances.index(min(distances))].path.name
    assert found.distance == pytest.approx(min(distances) / torch.tensor(nearest).median().item(), rel=1e-4)
    twice = whole.only([*range(len(whole)), *range(len(whole))])
    assert TrainingPictures(twice).nearest(painted).distance == pytest.approx(found.distance, rel=1e-4)


def test_few_pictures_say_nothing(whole):
    few = whole.only(range(FEWEST - 1))
    assert TrainingPictures(few).nearest(whole.latents[whole.items[0].view]) is None


def test_a_copy_is_told_once():
    told, near, far = set(), Nearest("a<b>.png", 0.12, copied=True), Nearest("c.png", 0.8)
    pictures = [PreviewPicture("a", None, None, {}, number, each) for number, each in ((3, near), (4, far), (5, None))]
    (warning,) = warnings_of(told, 20, pictures)
    assert "Preview 3 (a) copies the training picture" in warning.text and "after 20 steps" in warning.text
    assert warning.remedies == (events.LOWER_RATE,) and warning.pictures == ("a<b>.png",)
    assert not list(warnings_of(told, 40, pictures))


@pytest.mark.long
def test_a_run_names_the_nearest_picture_of_each_preview_and_is_silent_while_it_copies_none(brief_nano, robot):
    with torch.inference_mode():
        more = {text: encode_text(brief_nano.clip, text) for text in ONE.texts}
    embeds = replace(robot.embeds, embeds={**robot.embeds.embeds, **more})
    names = {item.path.name for item in robot.latents.dataset.items}
    for on in (True, False):
        request = PreviewRequest(replace(ONE, copies=on), brief_nano.vae)
        trainer = new_trainer(brief_nano.model, embeds, robot.latents, replace(SHORT, steps=1), previews=request)
        with torch.inference_mode(), closing(trainer.run()) as run:
            received = list(run)
        (picture,) = next(e.pictures for e in received if isinstance(e, events.Previewed))
        assert (picture.nearest.name in names and picture.nearest.distance > NEAR) if on else picture.nearest is None
        assert not [e for e in received if isinstance(e, events.Warned) and "copies" in e.text]
