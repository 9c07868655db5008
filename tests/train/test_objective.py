"""What a step learns, option by option: its loss against numpy, computed from the same predictions."""

import gc
import math
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from support import brief_flux2, inputs_of, tiny_caches
from test_losses import haar

from flux2_train.host.borrowed.borrow import borrow, training_mode
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.objective import GuidanceSettings, LossSettings, PreservationSettings
from flux2_train.settings.timesteps import TimestepSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.train.building import first_warnings

PRESERVING = PreservationSettings().every  # the first step that preserves
BASE = TrainingSettings(steps=4, rank=2, batch=2, targets="tiny", validation_items=0)
CACHES = tiny_caches()


@contextmanager
def step(caches=CACHES, **changes):
    """(trainer, objective, case) of a run whose adapters already do something, inside its step."""
    trainer = new_trainer(brief_flux2(guidance=True), *caches, replace(BASE, **changes))
    generator = torch.Generator().manual_seed(1)
    for name in trainer.adapters.names:
        with torch.no_grad():
            trainer.adapters.layer(name).lora_B["default"].weight.normal_(std=0.1, generator=generator)
    same_shape = [s for s in trainer.samples if s.shape == trainer.samples[0].shape][:2]
    swap = borrow(trainer.model, trainer.adapters.deltas(), trainer.config.checkpointing)
    with torch.inference_mode(), swap as borrowed, training_mode():
        yield trainer, trainer.objective(borrowed), inputs_of(trainer, same_shape)


def learned(**changes):
    """Of one learning pass: (loss, numpy's view of the prediction, the target and t), and the objective's own parts."""
    with step(**changes) as (_, objective, case):
        predicted = objective.predict(case).detach()
        blank = objective.predict(objective._unconditional(case)).detach()
        part = objective.learn(case, {})
        return part, predicted.double().numpy(), case.target.double().numpy(), case.t.double().numpy(), blank.numpy()


def mse(d):
    return (d**2).mean((1, 2, 3))


def test_plainly_it_is_the_mean_squared_error_of_the_velocity():
    part, p, target, _, _ = learned()
    assert part.loss.detach().numpy() == pytest.approx(mse(p - target), rel=1e-5)
    assert part.velocity_error.numpy() == pytest.approx(mse(p - target), rel=1e-5)
    with step() as (trainer, _, case):
        x0 = torch.cat([s.latent for s in case.samples])
        t = case.t.view(-1, 1, 1, 1)
        noise = (case.x_t - (1 - t) * x0) / t
        assert torch.allclose(case.target, noise - x0, atol=1e-4)
        assert trainer.drawn == 2


def wavelet_of(d, detail=3.0):
    bands = haar(d) ** 2
    weights = np.full(bands.shape[-2:], detail)
    weights[: d.shape[-2] // 2, : d.shape[-1] // 2] = 1
    return (bands * weights).mean((1, 2, 3))


def huber_of(d, t):
    c = (0.7 / (1 + np.sqrt((1 - t) / (t + 1e-4))) ** 2 + 0.3).reshape(-1, 1, 1, 1)
    return (2 * c * (np.sqrt(d**2 + c**2) - c)).mean((1, 2, 3))


LOSSES = {
    "mae": (LossSettings("mae"), lambda d, t: np.abs(d).mean((1, 2, 3))),
    "huber": (LossSettings("huber", 0.3, "snr"), huber_of),
    "smooth_l1": (LossSettings("smooth_l1", 0.2), lambda d, t: (2 * (np.sqrt(d**2 + 0.04) - 0.2)).mean((1, 2, 3))),
    "wavelet": (LossSettings("wavelet", wavelet_detail=3.0), lambda d, t: wavelet_of(d)),
    "clamped": (LossSettings(loss_min=0.2, loss_max=0.7), lambda d, t: mse(d).clip(0.2, 0.7)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_computed_as_chosen(name):
    config, expected = LOSSES[name]
    part, p, target, t, _ = learned(loss=config)
    assert part.loss.detach().numpy() == pytest.approx(expected(p - target, t), rel=1e-5)
    assert part.velocity_error.numpy() == pytest.approx(mse(p - target), rel=1e-5)  # told without any option


WEIGHTS = {
    "sigma_sqrt": lambda t: t**-2,
    "cosmap": lambda t: 2 / (math.pi * (1 - 2 * t + 2 * t**2)),
    "table": lambda t: 1 + 4 * t,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_belong_to_their_sample(name):
    part, p, target, t, _ = learned(timesteps=TimestepSettings(weighting=name, weights=(1.0, 3.0, 5.0)))
    assert t[0] != t[1]
    assert part.loss.detach().numpy() == pytest.approx(mse(p - target) * WEIGHTS[name](t), rel=1e-5)


def test_weighted_draws_uniformly_and_brings_its_curve():
    part, p, target, t, _ = learned(timesteps=TimestepSettings(distribution="weighted"))
    from flux2_train.flow.times import measured

    assert part.loss.detach().numpy() == pytest.approx(mse(p - target) * measured(torch.tensor(t)).numpy(), rel=1e-4)
    with step(timesteps=TimestepSettings(distribution="uniform", shift="none")) as (_, _, case):
        assert case.t.double().numpy() == pytest.approx(t)


def test_differential_guidance_acts_on_its_own_and_multiplies():
    part, p, target, _, _ = learned(differential_guidance=3.0)
    assert part.loss.detach().numpy() == pytest.approx(9 * mse(p - target), rel=1e-5)


@pytest.mark.parametrize("schedule, scale", [("constant", lambda t: 3 + 0 * t), ("sigma", lambda t: 1 + 2 * t)])
def test_contrastive_guidance_moves_the_target_from_the_blank_prediction(schedule, scale):
    part, p, target, t, blank = learned(
        guidance=GuidanceSettings(contrastive_guidance=3.0, contrastive_schedule=schedule)
    )
    moved = blank + scale(t).reshape(-1, 1, 1, 1) * (target - blank)
    assert part.loss.detach().numpy() == pytest.approx(mse(p - moved), rel=1e-4)
    assert part.velocity_error.numpy() == pytest.approx(mse(p - target), rel=1e-5)


def test_contrastive_projection_fits_the_blank_prediction_first():
    part, p, target, _, blank = learned(guidance=GuidanceSettings(contrastive_guidance=3.0, contrastive_project=True))
    along = (target * blank).sum((1, 2, 3)) / (blank**2).sum((1, 2, 3))
    base = along.reshape(-1, 1, 1, 1) * blank
    assert part.loss.detach().numpy() == pytest.approx(mse(p - base - 3 * (target - base)), rel=1e-4)


def test_true_cfg_compares_the_mixture():
    part, p, target, _, blank = learned(guidance=GuidanceSettings(true_cfg=4.0))
    assert part.loss.detach().numpy() == pytest.approx(mse(blank + 4 * (p - blank) - target), rel=1e-4)


def kept(options):
    """Of one preserving pass: (loss, the adapted model's prediction, an untouched model's), both with other words."""
    with step(preservation=0.5, preservation_options=options) as (_, objective, case):
        part = objective.preserve(case, {})
        words = [objective.blank if options.kind == "blank" else s.class_embeds for s in case.samples]
        other = [replace(s, embeds=w) for s, w in zip(case.samples, words, strict=True)]
        adapted = objective.predict(replace(case, samples=other)).detach()
        return part, adapted.double().numpy(), untouched(case, other)


def untouched(case, samples):
    """The prediction of a model that never had an adapter."""
    bare = new_trainer(brief_flux2(guidance=True), *CACHES, BASE)
    with torch.inference_mode(), borrow(bare.model, {}, True) as borrowed, training_mode(), torch.no_grad():
        return bare.predict(borrowed, case.x_t, case.t, samples).double().numpy()


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("kind", ["class", "blank"])
def test_preservation_compares_with_the_untouched_model(kind, every):
    """And weighs as many times as much as there are steps from one that preserves to the next."""
    part, adapted, base = kept(PreservationSettings(kind, every))
    assert np.abs(adapted - base).max() > 1e-3
    assert part.loss.detach().numpy() == pytest.approx(0.5 * every * mse(adapted - base), rel=1e-4)
    assert part.preservation.numpy() == pytest.approx(mse(adapted - base), rel=1e-4)


def in_float64(trainer, case):
    """The case, after trainer's model and adapters have been made float64."""
    transformer = trainer.model.model.diffusion_model.double()
    transformer.dtype, trainer.model.model.manual_cast_dtype = torch.float64, None
    for parameter in trainer.adapters.trainable():
        parameter.data = parameter.data.double()
    samples = [replace(s, embeds=s.embeds.double(), class_embeds=s.class_embeds.double()) for s in case.samples]
    return replace(case, samples=samples, x_t=case.x_t.double(), target=case.target.double())


def gradients(**changes):
    with step(preservation=0.5, **changes) as (trainer, objective, case):
        case = in_float64(trainer, case)
        for compute in objective.parts(PRESERVING):
            compute(case, {}).loss.sum().backward()
        return [p.grad for p in trainer.adapters.trainable()]


@pytest.mark.long
def test_both_passes_together_give_the_gradients_of_one_after_the_other():
    """In float64: preservation learns from the small difference of two predictions, which fp32 rounds."""
    apart, together = gradients(), gradients(preservation_options=PreservationSettings(together=True))
    for a, b in zip(apart, together, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9 * a.abs().max())


COMPOSED = {
    "class": {}, "together": {"preservation_options": PreservationSettings(together=True)},
    "blank": {"preservation_options": PreservationSettings(kind="blank")},
    "cfg": {"guidance": GuidanceSettings(true_cfg=3.0)},
    "contrastive": {"guidance": GuidanceSettings(contrastive_guidance=3.0)},
    "dropout": {"adapter": AdapterSettings(dropout=0.5)},
    "dora": {"adapter": AdapterSettings(dora=True)},
}  # fmt: skip


def gradients_of_a_step(checkpointing, base_model=None, **changes):
    """A step's gradients as the trainer computes them; ``base_model(adapters)`` may stand in for its own."""
    with step(preservation=0.5, checkpointing=checkpointing, **changes) as (trainer, objective, case):
        if base_model:
            objective.base_model = partial(base_model, trainer.adapters)
        with trainer.adapters.dropping(0, 1), trainer.adapters.unchanging():
            trainer._backward(objective.parts(PRESERVING), case, 1.0)
        return [p.grad for p in trainer.adapters.trainable()]


@pytest.mark.long(cases=2)
@pytest.mark.parametrize("name", COMPOSED)
def test_a_recomputed_block_sees_the_adapters_as_its_forward_did(name):
    """Passes with and without adapters alternate, and checkpoints recompute after the last of them."""
    plain, recomputed = (gradients_of_a_step(c, **COMPOSED[name]) for c in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


def test_adapters_left_off_by_a_base_pass_would_not_go_unnoticed():
    @contextmanager
    def left_off(adapters):
        adapters.enabled = False
        yield

    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        gradients_of_a_step(True, left_off)


class Alive:
    """Counts the bytes that autograd keeps, and their peak."""

    def __init__(self):
        self.now = self.peak = 0

    def pack(self, tensor):
        counter, size = self, tensor.numel() * tensor.element_size()
        counter.now += size
        counter.peak = max(counter.peak, counter.now)

        class Kept:
            def __init__(self):
                self.tensor = tensor

            def __del__(self):
                counter.now -= size

        return Kept()


def peak(**changes):
    with step(preservation=0.5, checkpointing=False, **changes) as (trainer, objective, case):
        alive = Alive()
        with torch.autograd.graph.saved_tensors_hooks(alive.pack, lambda kept: kept.tensor):
            trainer._backward(objective.parts(PRESERVING), case, 0.5)
        gc.collect()
        return alive.peak


@pytest.mark.long
def test_graphs_of_both_passes_live_at_once_only_if_asked_for():
    plain = peak(preservation_options=PreservationSettings(every=PRESERVING + 1)), peak()
    assert plain[1] == pytest.approx(plain[0], rel=0.01)
    assert peak(preservation_options=PreservationSettings(together=True)) > 1.8 * plain[0]


def test_every_nth_step_preserves():
    with step(preservation=0.5, preservation_options=PreservationSettings(every=3)) as (_, objective, _):
        assert [len(objective.parts(n)) for n in range(1, 8)] == [1, 1, 2, 1, 1, 2, 1]


def test_what_carries_no_gradient_is_computed_once_per_memo():
    changes = {"guidance": GuidanceSettings(contrastive_guidance=3.0), "differential_guidance": 2.0}
    with step(**changes) as (trainer, objective, case):
        calls, predict = [], objective.predict

        def counting(case):
            calls.append(torch.is_grad_enabled())
            return predict(case)

        objective.predict, memo = counting, {}
        first = objective.learn(case, memo).loss.detach()
        assert sorted(calls) == [False, True]  # contrastive guidance needs a pass without caption, and that no gradient
        again = objective.learn(case, memo).loss.detach()
        assert sorted(calls) == [False, True, True] and torch.equal(again, first)
        with torch.no_grad():
            trainer.adapters.trainable()[0].add_(0.1)
        kept, anew = objective.learn(case, memo).loss.detach(), objective.learn(case, {}).loss.detach()
        assert sorted(calls) == [False] * 2 + [True] * 4
        assert not torch.equal(kept, first) and not torch.equal(kept, anew)  # only what learns has moved


def test_the_embedded_guidance_reaches_the_model():
    with step() as (_, objective, case):
        one = objective.predict(case)
        other = objective.predict(replace(case, guidance=[1.0, 4.0]))
        assert torch.allclose(one[0], other[0], atol=1e-6) and not torch.allclose(one[1], other[1], atol=1e-4)
    with step(guidance=GuidanceSettings(1.0, guidance_max=5.0)) as (_, _, case):
        assert len(set(case.guidance)) == 2 and all(1 <= g <= 5 for g in case.guidance)


@pytest.mark.parametrize("every, warned", [(3, True), (2, False)])
def test_a_run_too_short_to_preserve_says_so(every, warned):
    config = replace(BASE, steps=2, preservation=1.0, preservation_options=PreservationSettings(every=every))
    received = list(first_warnings(brief_flux2(), config, total=2))
    assert [text for text in received if "nothing is preserved" in text] == received and bool(received) == warned
