"""Every option changes the result when it is on and no bit when it is off, alone in a run of the tiny FLUX.2."""

import dataclasses
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import brief_flux2, same, state_dict, tiny_caches

from flux2_train import events
from flux2_train.errors import UserError
from flux2_train.evaluate.plots import times_plot
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings import earlier
from flux2_train.settings.objective import GuardSettings, GuidanceSettings, LossSettings, PreservationSettings
from flux2_train.settings.optimizer import EmaSettings, OptimizerSettings
from flux2_train.settings.recipes import RECIPES, combined
from flux2_train.settings.text import numbers, rates
from flux2_train.settings.timesteps import TimestepSettings
from flux2_train.settings.training import NO_RECIPE, TrainingSettings
from flux2_train.train.timesteps import mu_of

BASE = TrainingSettings(steps=4, rank=2, targets="tiny", learning_rate=2e-3, validation_items=0)
CACHES = tiny_caches()
CURVE = (0.0, 1.0, 3.0)


def run(caches=CACHES, **changes):
    trainer = new_trainer(brief_flux2(guidance=True), *caches, replace(BASE, **changes))
    with torch.inference_mode(), closing(trainer.run()) as going:
        return trainer, list(going)


def weights(**changes):
    trainer, _ = run(**changes)
    with trainer.weights_for("export"):
        return state_dict(trainer.adapters, torch.float32)


@pytest.fixture(scope="module")
def plain():
    return weights()


def section(name, of, /, **values):
    return pytest.param({name: of(**values)}, id=f"{name}: {', '.join(f'{k}={v}' for k, v in values.items())}")


def timesteps(**values):
    return section("timesteps", TimestepSettings, **values)


ON = [
    timesteps(sigmoid_scale=2.0), timesteps(sigmoid_mean=0.5), timesteps(sigmoid_std=0.5),
    timesteps(distribution="uniform"),
    timesteps(distribution="weighted"), timesteps(distribution="beta"), timesteps(distribution="mode"),
    timesteps(distribution="curve", values=CURVE), timesteps(distribution="list", values=(1.0, 0.5)),
    timesteps(distribution="round robin", values=(750, 250)), timesteps(shift="none"), timesteps(shift="constant"),
    timesteps(shift="empirical"), timesteps(bias="high noise"), timesteps(bias="low noise"), timesteps(min=0.6),
    timesteps(max=0.4), timesteps(strata=4), timesteps(weighting="sigma_sqrt"), timesteps(weighting="cosmap"),
    timesteps(weighting="bell"), timesteps(weighting="measured"), timesteps(weighting="table", weights=CURVE),
    section("loss", LossSettings, loss="mae"), section("loss", LossSettings, loss="huber"),
    section("loss", LossSettings, loss="smooth_l1"), section("loss", LossSettings, loss="wavelet"),
    section("loss", LossSettings, loss_max=1.0),
    section("guidance", GuidanceSettings, guidance_max=5.0), section("guidance",
    GuidanceSettings, contrastive_guidance=3.0),
    section("guidance", GuidanceSettings, true_cfg=4.0), section("guidance", GuidanceSettings, guidance=4.0),
    {"differential_guidance": 3.0}, {"preservation": 1.0},
    section("optimizer", OptimizerSettings, optimizer="adafactor"), section("optimizer",
    OptimizerSettings, optimizer="lion"),
    section("optimizer", OptimizerSettings, optimizer="schedulefree"), section("optimizer",
    OptimizerSettings, betas=(0.5, 0.6)),
    section("optimizer", OptimizerSettings, eps=0.1), section("optimizer", OptimizerSettings, weight_decay=0.5),
    section("optimizer", OptimizerSettings, max_grad_norm=1e-9), section("optimizer",
    OptimizerSettings, schedule="linear"),
    section("optimizer", OptimizerSettings, schedule="cosine"), section("optimizer", OptimizerSettings, schedule="rex"),
    section("optimizer", OptimizerSettings, schedule="polynomial"), section("optimizer", OptimizerSettings, warmup=3),
    section("optimizer", OptimizerSettings, schedule="cosine with restarts", cycles=2),
    section("optimizer", OptimizerSettings, block_rates=(("double_blocks.*", 0.5),)), section("ema",
    EmaSettings, ema_decay=0.5),
]  # fmt: skip


@pytest.mark.parametrize("change", ON)
def test_on_it_changes_the_result(plain, change):
    assert not same(plain, weights(**change))


# What a wired option node gives where nobody touched it, and combined that belong to something that is off.
OFF = [
    timesteps(), section("loss", LossSettings), section("guidance", GuidanceSettings), section("preservation_options",
    PreservationSettings),
    section("optimizer", OptimizerSettings), section("ema", EmaSettings), section("guard", GuardSettings),
    timesteps(shift_factor=9.0, shift_steps=4, beta_alpha=5.0, beta_beta=7.0, mode_scale=0.5, weights=CURVE),
    section("loss", LossSettings, huber_width=3.0, huber_schedule="snr", wavelet_detail=9.0),
    section("guidance", GuidanceSettings, contrastive_schedule="sigma", contrastive_project=True),
    section("guidance", GuidanceSettings, references="index_timestep_zero"),  # no references here
    section("preservation_options", PreservationSettings, kind="blank", every=3, together=True),
    section("optimizer", OptimizerSettings, betas=(0.9, 0.999), eps=1e-8, end=0.5, cycles=3, power=4.0),
    section("ema", EmaSettings, ema_decay=0.9, ema_export=False, ema_preview=False), section("guard",
    GuardSettings, bad_losses=1),
    {"recipe": "style"},
]  # fmt: skip


@pytest.mark.parametrize("change", OFF)
def test_off_it_changes_no_bit(plain, change):
    assert same(plain, weights(**change))


PAIRS_OF_SETTINGS = [
    ({"timesteps": TimestepSettings(shift="constant")},
     {"timesteps": TimestepSettings(shift="constant", shift_factor=8.0)}),
    ({"timesteps": TimestepSettings(shift="empirical")},
     {"timesteps": TimestepSettings(shift="empirical", shift_steps=50)}),
    ({"timesteps": TimestepSettings("beta")}, {"timesteps": TimestepSettings("beta", beta_alpha=1.0)}),
    ({"timesteps": TimestepSettings("beta")}, {"timesteps": TimestepSettings("beta", beta_beta=1.0)}),
    ({"timesteps": TimestepSettings("mode")}, {"timesteps": TimestepSettings("mode", mode_scale=0.1)}),
    ({"loss": LossSettings("huber")}, {"loss": LossSettings("huber", huber_width=1.0)}),
    ({"loss": LossSettings("huber")}, {"loss": LossSettings("huber", huber_schedule="exponential")}),
    ({"loss": LossSettings("huber")}, {"loss": LossSettings("huber", huber_schedule="snr")}),
    ({"loss": LossSettings("wavelet")}, {"loss": LossSettings("wavelet", wavelet_detail=4.0)}),
    ({"loss": LossSettings(loss_max=100.0)}, {"loss": LossSettings(loss_max=100.0, loss_min=50.0)}),
    ({"guidance": GuidanceSettings(contrastive_guidance=3.0)}, {"guidance": GuidanceSettings(contrastive_guidance=3.0,
    contrastive_project=True)}),
    ({"guidance": GuidanceSettings(contrastive_guidance=3.0)},
     {"guidance": GuidanceSettings(contrastive_guidance=3.0, contrastive_schedule="sigma")}),
    ({"preservation": 1.0}, {"preservation": 1.0, "preservation_options": PreservationSettings(kind="blank")}),
    ({"preservation": 1.0}, {"preservation": 1.0, "preservation_options": PreservationSettings(every=2)}),
    ({"optimizer": OptimizerSettings(schedule="linear")}, {"optimizer": OptimizerSettings(schedule="linear", end=0.5)}),
    ({"optimizer": OptimizerSettings(schedule="polynomial")},
     {"optimizer": OptimizerSettings(schedule="polynomial", power=3.0)}),
    ({"ema": EmaSettings(0.5)}, {"ema": EmaSettings(0.5, ema_warmup=3)}),
]  # fmt: skip


@pytest.mark.parametrize("less, more", PAIRS_OF_SETTINGS, ids=lambda c: str(c)[:60])
def test_the_settings_of_an_option_act(less, more):
    assert not same(weights(**less), weights(**more))


# What acts in other tests, because it needs masks, references, a broken image, or changes the cost alone.
ELSEWHERE = {
    ("guidance", "references"), ("preservation_options", "outside_mask"), ("preservation_options", "together"),
    ("ema", "ema_export"), ("ema", "ema_preview"), ("guard", "bad_losses"), ("guard", "divergence"), ("guard",
    "stop_on_divergence"), ("optimizer", "other"), ("optimizer", "other_arguments"),
}  # fmt: skip


def test_no_setting_is_left_out_here():
    acting = [change.values[0] if hasattr(change, "values") and not isinstance(change, dict) else change
              for change in ON] + [more for _, more in PAIRS_OF_SETTINGS]  # fmt: skip
    found, every = set(), set()
    for name in ("timesteps", "loss", "guidance", "preservation_options", "optimizer", "ema", "guard"):
        default = getattr(TrainingSettings(), name)
        every |= {(name, f.name) for f in dataclasses.fields(default)}
        found |= {(name, f.name) for change in acting for f in dataclasses.fields(default)
                  if getattr(change.get(name, default), f.name) != getattr(default, f.name)}  # fmt: skip
    assert every - found == ELSEWHERE


def test_a_model_without_guidance_says_so_and_ignores_it():
    def trained(**changes):
        trainer = new_trainer(brief_flux2(), *CACHES, replace(BASE, **changes))
        with torch.inference_mode(), closing(trainer.run()) as going:
            received = [e.text for e in going if isinstance(e, events.Warned)]
        return received, state_dict(trainer.adapters, torch.float32)

    quiet, plain = trained()
    received, ignored = trained(guidance=GuidanceSettings(3.0, guidance_max=5.0))
    assert same(plain, ignored)
    assert (
        [text for text in received if text not in quiet]
        == [text for text in received if "has no guidance input; the guidance set is ignored" in text]
        != []
    )


def test_prodigy_runs_at_its_own_rate(plain):
    found = weights(learning_rate=1.0, optimizer=OptimizerSettings("prodigy"))
    assert not same(plain, found) and all(torch.isfinite(v).all() for v in found.values())


def test_a_mean_of_the_weights_is_exported_and_the_weights_go_on(plain):
    """EMA changes what is saved, never the training itself."""
    trainer, _ = run(ema=EmaSettings(0.5))
    assert same(plain, state_dict(trainer.adapters, torch.float32))
    first = [p.detach().clone() for p in new_trainer(brief_flux2(guidance=True), *CACHES, BASE).adapters.trainable()]
    shadow = first
    for steps in range(1, 5):  # the runs of 1..4 steps pass through the same weights
        stopped, _ = run(steps=steps)
        shadow = [0.5 * s + 0.5 * p.detach() for s, p in zip(shadow, stopped.adapters.trainable(), strict=True)]
    with trainer.weights_for("export"):
        for mean, p in zip(shadow, trainer.adapters.trainable(), strict=True):
            assert torch.allclose(mean, p, atol=1e-7)


@pytest.mark.long
def test_validation_looks_at_the_mean_only_if_asked_to():
    def last(**ema):
        trainer, _ = run(ema=EmaSettings(**ema), validation_items=2, steps=3)
        return trainer.history.validation[3]

    assert last(ema_decay=0.9) != last() == last(ema_decay=0.9, ema_preview=False)


def test_the_learning_rate_follows_its_schedule_in_a_run():
    trainer, _ = run(optimizer=OptimizerSettings(schedule="linear", warmup=2), steps=6)
    assert trainer.history.rates == pytest.approx([1e-3, 2e-3, 2e-3, 1.5e-3, 1e-3, 5e-4])


def test_a_block_at_rate_zero_stays_as_it_was():
    trainer, _ = run(optimizer=OptimizerSettings(block_rates=(("double_blocks.*", 0.0),)))
    for name in trainer.adapters.names:
        up = trainer.adapters.layer(name).lora_B["default"].weight
        assert bool(up.any()) != name.startswith("double_blocks"), name


def test_a_data_sets_offset_moves_its_times():
    def drawn(by):
        sources = tuple(replace(source, timestep_offset=by) for source in CACHES[1].dataset.sources)
        dataset = replace(CACHES[1].dataset, sources=sources)
        trainer = new_trainer(brief_flux2(), *(replace(cache, dataset=dataset) for cache in CACHES), BASE)
        return torch.logit(trainer.draw([trainer.samples[0]], 1).t.double())

    assert (drawn(0.7) - drawn(0.0)).item() == pytest.approx(0.7, abs=1e-3)


def test_keeping_what_is_outside_masks_needs_masks():
    with pytest.raises(UserError, match="no image has a mask"):
        run(preservation_options=PreservationSettings(outside_mask=0.5))


def test_losses_are_told_by_noise_band():
    trainer, received = run(timesteps=TimestepSettings("round robin", values=(0.05, 0.95)), steps=6)
    bands = trainer.history.by_band()
    assert list(bands) == ["0-0.1", "0.9-1"]
    steps = [e.loss for e in received if isinstance(e, events.Stepped)]
    assert bands["0-0.1"] == pytest.approx(np.mean(steps[::2])) and bands["0.9-1"] == pytest.approx(
        np.mean(steps[1::2])
    )


@pytest.mark.long
def test_a_diverging_run_is_told_of_and_stopped_if_wanted():
    def warnings(**guard):  # below 1 every mean is "divergence": when it should be told is tested with the guard
        received = run(steps=21, rank=1, guard=GuardSettings(**guard))[1]
        return [e for e in received if isinstance(e, events.Warned) and "training diverges" in e.text]

    (warned,) = warnings(divergence=0.5)
    assert warned.remedies == (events.LOWER_RATE,) and not warnings()
    with pytest.raises(UserError, match="training diverges"):
        warnings(divergence=0.5, stop_on_divergence=True)


def test_an_adapter_that_is_cut_off_stops_the_run(monkeypatch):
    trainer = new_trainer(brief_flux2(guidance=True), *CACHES, replace(BASE, steps=6))
    cut = trainer.adapters.names[1]
    deltas = trainer.adapters.deltas()
    cut_off = {**deltas, cut: lambda *inputs: deltas[cut](*inputs).detach()}  # as a kernel without gradient does
    monkeypatch.setattr(trainer.adapters, "deltas", lambda: cut_off)
    with torch.inference_mode(), pytest.raises(UserError, match=f"1 of 4 adapters get no gradient .{cut}"):
        list(trainer.run())


def test_configuration_goes_through_json():
    config = replace(
        BASE, timesteps=TimestepSettings("curve", values=CURVE), ema=EmaSettings(0.9),
        optimizer=OptimizerSettings(betas=(0.9, 0.95), block_rates=(("*img*", 0.5),)),
    )  # fmt: skip
    assert earlier.settings_of(config.to_json()) == config
    with pytest.raises(UserError, match="loss.huber_wdith is no setting; did you mean .huber_width."):
        earlier.settings_of('{"loss": {"huber_wdith": 1}}')


@pytest.mark.parametrize("kind, values, words", [
    (TimestepSettings, {"distribution": "normal"}, "distribution is 'normal'; choose one of sigmoid"),
    (TimestepSettings, {"min": 0.7, "max": 0.3}, "limited to 0.7..0.3; min must be below max"),
    (TimestepSettings, {"distribution": "list"}, "has no time within its limits"),
    (TimestepSettings, {"distribution": "list", "values": (0.5, 0.0)}, "every time must be above 0"),
    (TimestepSettings, {"distribution": "curve", "values": (0.0, 0.0)}, "needs two heights or more"),
    (TimestepSettings, {"distribution": "weighted", "weighting": "bell"}, "set weighting to 'none'"),
    (TimestepSettings, {"weighting": "table", "weights": (1.0, -1.0)}, "needs two weights or more"),
    (TimestepSettings, {"sigmoid_std": 0.0}, "sigmoid_std is 0; it must be at least 0.01"),
    (LossSettings, {"loss_min": 2.0, "loss_max": 1.0}, "clamped to 2..1; loss_min must be below"),
    (LossSettings, {"huber_width": 0.0}, "huber_width is 0; it must be at least 0.0001"),
    (GuidanceSettings, {"contrastive_guidance": 3.0, "true_cfg": 3.0}, "choose one of them"),
    (PreservationSettings, {"every": 0}, "every is 0; it must be at least 1"),
    (OptimizerSettings, {"betas": (0.9,)}, "two are needed"),
    (OptimizerSettings, {"optimizer": "schedulefree", "schedule": "cosine"}, "schedule-free AdamW has none"),
    (OptimizerSettings, {"optimizer": "adafactor", "betas": (0.9, 0.99)}, "betas does nothing for adafactor"),
    (OptimizerSettings, {"optimizer": "lion", "eps": 0.1}, "eps does nothing for lion"),
    (EmaSettings, {"ema_decay": 1.0}, "ema_decay is 1; it must be at least 0 and at most"),
    (GuidanceSettings, {"guidance": 3.0, "guidance_max": 2.0}, "drawn from 3 to 2"),
], ids=str)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_value(kind, values, words):
    with pytest.raises(UserError, match=words):
        kind(**values)


def test_texts_of_numbers_and_rates():
    assert numbers(" 1, 0.5 0.25,", "values") == (1.0, 0.5, 0.25) and numbers("", "values") == ()
    assert rates("double_blocks=0.5, img_mlp = 0") == (("double_blocks", 0.5), ("img_mlp", 0.0)) and rates("") == ()
    with pytest.raises(UserError, match="values is '1; 2'"):
        numbers("1; 2", "values")
    for wrong in ("double_blocks", "=2", "(=1"):
        with pytest.raises(UserError, match="block_rates is"):
            rates(wrong)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_configurations_and_every_value_can_be_overridden(name):
    config = TrainingSettings(**combined(name, {}, {}))
    assert config.recipe == name
    for field, value in RECIPES[name].values.items():
        assert getattr(config, field) == value
    other = {"rank": 7, "steps": 11, "timesteps": TimestepSettings("beta")}
    config = TrainingSettings(**combined(name, {"rank": 7, "steps": 11}, {"timesteps": other["timesteps"]}))
    assert all(getattr(config, field) == value for field, value in other.items())


def test_the_recipe_of_nothing_is_the_default():
    assert TrainingSettings(**combined(NO_RECIPE, {}, {})) == TrainingSettings()


def test_recipes_have_the_documented_values():
    ai = TrainingSettings(**combined("ai-toolkit", {}, {}))
    assert (ai.rank, ai.scale_alpha, ai.steps, ai.learning_rate) == (32, 32, 3000, 1e-4)
    assert (ai.optimizer.optimizer, ai.optimizer.weight_decay, ai.optimizer.eps) == ("adamw8bit", 1e-4, 1e-6)
    assert ai.timesteps.distribution == "weighted" and ai.optimizer.max_grad_norm == 1.0
    musubi = TrainingSettings(**combined("musubi", {}, {}))
    assert (musubi.rank, musubi.scale_alpha, musubi.epochs, musubi.seed) == (32, 1, 16, 42)
    assert mu_of(musubi.timesteps, 1024) == pytest.approx(0.63)
    simple = TrainingSettings(**combined("simpletuner", {}, {}))
    assert (simple.rank, simple.steps, simple.guidance.guidance, simple.adapter.dropout) == (16, 10_000, 1.0, 0.1)
    assert np.exp(mu_of(simple.timesteps, 4096)) == pytest.approx(3.0)


def test_the_plot_shows_what_is_drawn():
    pictures = [times_plot(TimestepSettings(**v), 1024) for v in ({}, {"bias": "high noise"}, {"weighting": "bell"})]
    arrays = [np.asarray(p) for p in pictures]
    assert all(p.size == (800, 400) for p in pictures)
    assert (arrays[0] != arrays[1]).mean() > 0.01 and (arrays[0] != arrays[2]).any()
