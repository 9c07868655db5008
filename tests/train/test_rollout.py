"""Scheduled sampling in a run: what the model gets, without gradient; off is nothing; every setting acts."""

from contextlib import closing
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from support import brief_flux2, inputs_of, same, state_dict, tiny_caches

from flux2_train.flow.times import empirical_mu
from flux2_train.host.borrowed.borrow import borrow, training_mode
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.rollout import RolloutSettings
from flux2_train.settings.routing import RoutingSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.train import trainer as training
from flux2_train.train.rollout import draw_offsets, paths_of

BASE = TrainingSettings(steps=3, rank=2, targets="tiny", learning_rate=2e-3, validation_items=0)
ALWAYS = RolloutSettings(1.0, 2, 4)


def trained(**changes):
    trainer = new_trainer(brief_flux2(), *tiny_caches(), replace(BASE, **changes))
    with torch.inference_mode(), closing(trainer.run()) as run:
        list(run)
    return trainer


@cache
def weights_of(settings):
    return state_dict(trained(rollout=settings).adapters, torch.float32)


@pytest.mark.parametrize("settings", [
    RolloutSettings(0.0, 5, 4, reflexflow=True, sampler="heun", schedule="uniform"),
    RolloutSettings(1.0, start_step=3),
])  # fmt: skip
def test_off_it_changes_no_bit(settings):
    assert same(weights_of(RolloutSettings()), weights_of(settings))


@pytest.mark.parametrize("settings", [
    RolloutSettings(), replace(ALWAYS, probability=0.5), replace(ALWAYS, max_offset=1),
    replace(ALWAYS, inference_steps=20), replace(ALWAYS, schedule="uniform"), replace(ALWAYS, sampler="heun"),
    replace(ALWAYS, start_step=1), replace(ALWAYS, ramp_steps=9), replace(ALWAYS, reflexflow=True),
], ids=str)  # fmt: skip
def test_every_setting_acts(settings):
    assert not same(weights_of(ALWAYS), weights_of(settings))


@pytest.mark.parametrize("change", [{"reflex_weight": 0.0}, {"reflex_drift": 0.0}])
def test_both_parts_of_reflexflow_act(change):
    reflex = replace(ALWAYS, reflexflow=True)
    assert not same(weights_of(reflex), weights_of(replace(reflex, **change)))


def test_offsets_are_drawn_as_often_and_as_far_as_the_settings_say():
    generator = torch.Generator().manual_seed(0)
    offsets = draw_offsets(RolloutSettings(0.4, 3), 10_000, 1, generator)
    counts = [offsets.count(k) / 10_000 for k in range(4)]
    assert counts[0] == pytest.approx(0.6, abs=0.02) and counts[1:] == pytest.approx([0.4 / 3] * 3, abs=0.015)
    state = generator.get_state()
    assert draw_offsets(RolloutSettings(0.4, start_step=9), 5, 9, generator) == [0] * 5
    assert torch.equal(generator.get_state(), state)


def test_the_input_is_what_euler_makes_of_the_models_own_velocity():
    """Sample by sample, with the trainer's own predictions as the only part that is not computed anew."""
    trainer = new_trainer(brief_flux2(), *tiny_caches(), replace(BASE, rollout=ALWAYS))
    batch = [s for s in trainer.samples if s.shape == trainer.samples[0].shape]
    with torch.inference_mode(), borrow(trainer.model, trainer.adapters.deltas()) as borrowed, training_mode():
        state = trainer.generator.get_state()
        drawn = trainer.draw(batch, 1)
        trainer.generator.set_state(state)
        found = inputs_of(trainer, batch, trainer.objective(borrowed))
        assert not found.x_t.requires_grad and found.rolled.tolist() == [offset > 0 for offset in drawn.offsets]
        tokens = batch[0].latent[0, 0].numel()
        for i, times in enumerate(paths_of(ALWAYS, drawn.t, drawn.offsets, tokens)):
            x0, noise = batch[i].latent, drawn.noise[i : i + 1]
            x = (1 - times[0]) * x0 + times[0] * noise
            for now, then in pairwise(times):
                with torch.no_grad():
                    x = x + (then - now) * trainer.predict(borrowed, x, torch.tensor([now]), [batch[i]])
            torch.testing.assert_close(found.x_t[i : i + 1], x, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.on_path[i : i + 1], (1 - times[-1]) * x0 + times[-1] * noise)
            torch.testing.assert_close(found.target[i : i + 1], noise - x0)  # what is learned stays the same


def test_the_schedule_is_that_of_the_samples_size():
    uniform = paths_of(replace(ALWAYS, schedule="uniform"), torch.tensor([0.5]), [1], 64)
    assert uniform == [pytest.approx([0.75, 0.5])]
    assert paths_of(ALWAYS, torch.tensor([0.5]), [1], 64) != paths_of(ALWAYS, torch.tensor([0.5]), [1], 4000)
    assert empirical_mu(64, 4) > 1  # so it is nearer to noise than the uniform one


@pytest.fixture
def passes(monkeypatch):
    """(whether routed, whether a gradient is kept) of each pass of the model."""
    seen, velocity = [], training.velocity

    def noting(model, x_t, t, conditions, routes=()):
        seen.append((bool(routes), torch.is_grad_enabled()))
        return velocity(model, x_t, t, conditions, routes)

    monkeypatch.setattr(training, "velocity", noting)
    return seen


def test_passes_of_a_step_are_those_that_the_documentation_counts(passes):
    """Rollouts are not routed."""
    routing = RoutingSettings(0.5, 0, -1, until=100.0)
    trained(steps=1, rollout=RolloutSettings(1.0, 1, 4, sampler="heun", reflexflow=True), routing=routing)
    assert passes == [(False, False), (False, False), (True, True), (True, False)]


def test_a_step_that_is_repeated_after_running_out_of_memory_learns_the_same(monkeypatch):
    """The input is sampled anew from the same draws."""
    velocity, failed = training.velocity, []

    def failing_once(*args):
        if torch.is_grad_enabled() and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("once")
        return velocity(*args)

    expected = trained(rollout=ALWAYS, checkpointing=False)
    monkeypatch.setattr(training, "velocity", failing_once)
    found = trained(rollout=ALWAYS, checkpointing=False)
    assert failed and same(*(state_dict(t.adapters, torch.float32) for t in (expected, found)))
