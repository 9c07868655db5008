"""Selectivity: what the trigger changes against what everything else changes, and which step that makes the best."""

import math
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from support import brief_flux2, same, state_dict, tiny_caches

from flux2_train import events
from flux2_train.data.samples import samples
from flux2_train.evaluate.best import best_step, score
from flux2_train.evaluate.fixed_noise import NOISY, TIMES
from flux2_train.evaluate.selectivity import MOST, NO_TRIGGER, pairs
from flux2_train.events import SelectivityMeasured
from flux2_train.host.borrowed.borrow import borrow, training_mode
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.previews import ValidationLossSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.train.history import History

SHORT = TrainingSettings(name="metered", steps=2, rank=2, learning_rate=1e-2, validation_items=3, checkpointing=False)
ON, OFF = ValidationLossSettings(every=1), ValidationLossSettings(every=1, selectivity=False)


def trained(loss=ON, caches=None, wired=None):
    config = replace(SHORT, validation_loss=loss)
    trainer = new_trainer(brief_flux2(), *(caches or tiny_caches(3)), config, held_out=wired)
    with torch.inference_mode(), closing(trainer.run()) as run:
        return trainer, list(run)


def measured(received):
    return [event for event in received if isinstance(event, SelectivityMeasured)]


@pytest.fixture(scope="module")
def metered():
    return trained()


def change_by_hand(trainer, sample, seed):
    """Mean of (v_LoRA - v_base)^2 over the two noisy times, each with its own part of the noise of ``seed``."""
    generator, changes = torch.Generator().manual_seed(seed), []
    with torch.inference_mode(), borrow(trainer.model, trainer.adapters.deltas()) as borrowed:
        for time in TIMES:
            noise = torch.randn(sample.latent.shape, generator=generator)
            x_t, velocities = (1 - time) * sample.latent + time * noise, []
            for enabled in (True, False):
                trainer.adapters.enabled = enabled
                with training_mode(), torch.no_grad():
                    velocities.append(trainer.predict(borrowed, x_t, torch.tensor([time]), [sample]))
            trainer.adapters.enabled = True
            changes += [((velocities[0] - velocities[1]) ** 2).mean().item()] if time in NOISY else []
    return sum(changes) / len(NOISY)


@pytest.mark.long
def test_it_is_the_change_with_the_trigger_over_the_change_without(metered):
    trainer, received = metered
    last = measured(received)[-1]
    taught = [change_by_hand(trainer, trainer.samples[i], i) for i in range(3)]
    plain = [replace(s, embeds=s.class_embeds) for s in trainer.samples]
    leaked = [change_by_hand(trainer, plain[i], i) for i in range(3)]
    assert all(s.item.class_caption.startswith("toy") and "zbot" not in s.item.class_caption for s in plain)
    assert (last.taught, last.leaked) == (
        pytest.approx(sum(taught) / 3, rel=1e-4),
        pytest.approx(sum(leaked) / 3, rel=1e-4),
    )
    assert last.selectivity == last.taught / last.leaked and f"selectivity {last.selectivity:.3g} (" in str(last)


@pytest.mark.long
def test_a_round_costs_two_predictions_an_image_and_the_first_four_more():
    """Beside the validation's four an image, before the first step and after each of the two."""
    made = []
    for loss in (ON, OFF):
        trainer = new_trainer(brief_flux2(), *tiny_caches(2), replace(SHORT, validation_loss=loss))
        calls, predict = [], trainer.predict
        trainer.predict = lambda *args, calls=calls, predict=predict: calls.append(1) or predict(*args)
        with torch.inference_mode(), closing(trainer.run()) as run:
            list(run)
        made.append(len(calls))
    assert made == [2 * (3 * 4 + 2 * 2 + 4) + 2, 2 * 3 * 4 + 2]  # two images; two steps


@pytest.mark.long
def test_it_is_measured_with_the_validation_loss_and_changes_no_bit(metered):
    trainer, received = metered
    without, silent = trained(OFF)
    assert same(state_dict(trainer.adapters, torch.float32), state_dict(without.adapters, torch.float32))
    assert trainer.history.losses == without.history.losses and trainer.history.validation == without.history.validation
    assert [event.step for event in measured(received)] == [1, 2] == list(trainer.history.selectivity)
    assert not measured(silent) and not without.history.selectivity
    again, _ = trained()
    assert again.history.selectivity == trainer.history.selectivity
    other = History()
    other.load_state_dict(trainer.history.state_dict())
    assert other.selectivity == trainer.history.selectivity
    best = [event.step for event in received if isinstance(event, events.BestSoFar)]
    assert best[-1] == best_step(trainer.history)


def with_source(caches, **source):
    """The caches, whose folder has other settings."""
    dataset = caches[1].dataset
    changed = replace(dataset, sources=(replace(dataset.sources[0], **source),))
    return tuple(replace(cache, dataset=changed) for cache in caches)


def test_without_a_class_word_the_empty_caption_is_the_one_without_the_trigger():
    caches = tiny_caches(9)
    whole = samples(*caches)
    found = pairs(whole, range(9), 5)
    assert len(found) == MOST and [(p.index, p.seed) for p in found] == [(0, 5), (2, 7), (4, 9), (6, 11)]
    items = tuple(replace(item, class_captions=item.captions) for item in whole.items)
    dataset = replace(caches[1].dataset, items=items)
    (first, *_) = pairs(samples(*(replace(cache, dataset=dataset) for cache in caches)), [4], 0)
    assert torch.equal(first.read(False).embeds, caches[0].embeds[""])
    assert torch.equal(first.read(True).embeds, caches[0].embeds[items[4].caption])


@pytest.mark.long
def test_held_out_images_are_measured_and_training_images_where_those_have_no_trigger():
    """What validation has just predicted is used where it is of the same image, caption and noise, and only there."""
    whole = tiny_caches(4)
    held_out = tuple(replace(c, dataset=replace(c.dataset, items=c.dataset.items[3:])) for c in whole)
    caches = tuple(replace(c, dataset=replace(c.dataset, items=c.dataset.items[:1])) for c in whole)
    for wired, source in ((held_out, "held_out"), (with_source(held_out, trigger=""), "samples")):
        trainer, received = trained(caches=caches, wired=wired)
        (sample,) = getattr(trainer, source)
        assert measured(received)[-1].taught == pytest.approx(change_by_hand(trainer, sample, 0), rel=1e-4)


@pytest.mark.long
def test_where_no_caption_has_a_trigger_the_run_says_why_it_is_not_measured():
    caches = with_source(tiny_caches(3), trigger="")
    assert not pairs(samples(*caches), range(3), 0)
    _, received = trained(caches=caches)
    assert not measured(received) and events.Phase(NO_TRIGGER) in received


def test_the_best_step_has_gained_most_that_belongs_to_the_trigger():
    history = History(validation={0: 1.0, 10: 0.8, 20: 0.7, 30: 0.65, 40: 1.2})
    assert best_step(history) == 30 and score(history, 0) == -math.inf == score(history, 5)
    history.selectivity = {10: (0.2, 0.02), 20: (0.3, 0.03), 30: (0.4, 0.2), 40: (0.5, 0.01)}
    assert score(history, 20) == pytest.approx(0.3 * 0.99) and score(history, 30) == pytest.approx(0.35 * 0.75)
    assert best_step(history) == 20 and score(history, 40) == pytest.approx(-0.2)
    assert best_step(History()) is None and best_step(History(validation={0: 1.0})) is None
    assert best_step(History(validation={20: 0.7, 30: 0.6, 40: math.nan})) == 30


def test_where_nearly_all_leaks_the_loss_names_the_best_step():
    history = History(validation={0: 1.0, 10: 0.8, 20: 0.7, 30: 0.71}, selectivity={10: (1.03, 1.0), 30: (0.99, 1.0)})
    history.selectivity[20] = (1.01, 1.0)
    assert best_step(history) == 20 and score(history, 20) == pytest.approx(0.3 * (1 - 0.9**2))
    history.selectivity[10] = (1.0, 0.2)
    assert best_step(history) == 10


def test_nothing_leaked_and_nothing_changed_have_words_too():
    assert (
        SelectivityMeasured(1, 0.2, 0.0).selectivity == math.inf and SelectivityMeasured(1, 0.0, 0.0).selectivity == 1
    )
