"""Concept sliders: each direction against its formula, gradients, what is refused, and that off is nothing."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import brief_flux2, inputs_of, same, state_dict, tiny_caches

from flux2_train.errors import UserError
from flux2_train.flow.slider import slider_target, with_other_image
from flux2_train.host.borrowed.borrow import borrow, training_mode
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.objective import GuidanceSettings, LossSettings, PreservationSettings
from flux2_train.settings.rollout import RolloutSettings
from flux2_train.settings.slider import SliderSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.train.plans import passes_of
from flux2_train.train.slider import strength_of

BASE = TrainingSettings(steps=3, rank=2, targets="tiny", learning_rate=2e-3, validation_items=0)
GENERATOR = torch.Generator().manual_seed(7)
EMBEDS, LATENTS = tiny_caches()
NEUTRAL, POSITIVE, NEGATIVE, OTHER = list(EMBEDS.embeds)[:4]
PROMPTS, PAIRS = SliderSettings("prompts", POSITIVE, NEGATIVE, NEUTRAL), SliderSettings("pairs")


def paired():
    """The caches with a reference of each image: another picture of its shape."""
    latents, items = dict(LATENTS.latents), []
    for item in LATENTS.dataset.items:
        before = replace(item.view, digest=f"before {item.view.digest}")
        latents[before] = torch.randn(before.latent_shape, generator=GENERATOR)
        items.append(replace(item, references=(before,)))
    dataset = replace(LATENTS.dataset, items=tuple(items))
    return replace(EMBEDS, dataset=dataset), replace(LATENTS, dataset=dataset, latents=latents)


BOTH = paired()


def trained(data=(EMBEDS, LATENTS), **changes):
    trainer = new_trainer(brief_flux2(), *data, replace(BASE, **changes))
    with torch.inference_mode(), closing(trainer.run()) as run:
        list(run)
    return trainer


def weights_of(slider=PROMPTS, **changes):
    data = BOTH if slider is PAIRS else (EMBEDS, LATENTS)
    return state_dict(trained(data, slider=slider, **changes).adapters, torch.float32)


def test_the_formulas_by_hand():
    one, two, three = (torch.full((1, 1, 1, 1), value) for value in (1.0, 5.0, 3.0))
    assert [slider_target(one, two, three, side, 3.0).item() for side in (1.0, -1.0)] == [7, -5]
    x0, other, noise = (torch.randn(2, 3, 4, 4, generator=GENERATOR, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([0.3, 0.9], dtype=torch.float64)
    w = t.view(-1, 1, 1, 1)
    x_t, target = with_other_image((1 - w) * x0 + w * noise, noise - x0, t, x0, other)
    torch.testing.assert_close(x_t, (1 - w) * other + w * noise)
    torch.testing.assert_close(target, noise - other)


class Step:
    """A step of a slider whose adapters already do something: its parts, and the model's own velocities."""

    def __init__(self, trainer, borrowed, batch):
        self.trainer, self.borrowed, self.batch = trainer, borrowed, batch
        self.case = inputs_of(trainer, batch)

    def results(self):
        memo = {}
        for part in self.trainer.objective(self.borrowed).parts(1):
            with self.trainer.adapters.at_strength(strength_of(part)):
                yield strength_of(part), part(self.case, memo)

    def velocity(self, x_t, text, strength):
        samples = [replace(s, embeds=self.trainer.slider.get(text, s.embeds), references=()) for s in self.batch]
        with torch.no_grad(), self.trainer.adapters.at_strength(strength):
            return self.trainer.predict(self.borrowed, x_t, self.case.t, samples, self.case.guidance).double()

    def error(self, slider, strength):
        """What the formula says, without the engine's."""
        if slider.slider == "prompts":
            neutral, positive, negative = (self.velocity(self.case.x_t, name, 0.0)
                                           for name in ("neutral", "positive", "negative"))  # fmt: skip
            target = neutral + strength * slider.slider_guidance * (positive - negative)
            return (self.velocity(self.case.x_t, "neutral", strength) - target).numpy()
        picture = torch.cat([s.latent if strength > 0 else s.references[0] for s in self.batch])
        noise, w = self.case.target + torch.cat([s.latent for s in self.batch]), self.case.t.view(-1, 1, 1, 1)
        return (self.velocity((1 - w) * picture + w * noise, "caption", strength) - (noise - picture)).numpy()


@pytest.mark.parametrize("slider", [PROMPTS, PAIRS, replace(PROMPTS, slider_guidance=1.0)], ids=lambda s: s.slider)
@pytest.mark.parametrize("loss", ["mse", "mae"])
def test_each_direction_is_half_the_loss_of_its_formula(slider, loss):
    config = replace(BASE, batch=2, slider=slider, loss=LossSettings(loss))
    trainer = new_trainer(brief_flux2(), *(BOTH if slider is PAIRS else (EMBEDS, LATENTS)), config)
    for p in trainer.adapters.trainable():
        p.data += 0.05 * torch.randn(p.shape, generator=GENERATOR)
    batch = [s for s in trainer.samples if s.shape == trainer.samples[0].shape][:2]
    with torch.inference_mode(), borrow(trainer.model, trainer.adapters.deltas()) as borrowed, training_mode():
        step = Step(trainer, borrowed, batch)
        results = list(step.results())
        errors = [step.error(slider, strength) for strength, _ in results]
    assert [strength for strength, _ in results] == [-1.0, 1.0]
    for (_, part), error in zip(results, errors, strict=True):
        expected = (np.abs(error) if loss == "mae" else error**2).mean((1, 2, 3)) / 2
        assert part.loss.detach().numpy() == pytest.approx(expected, rel=1e-4)
    for (_, part), error in zip(results, errors, strict=True):  # both halves together are the mean
        assert part.velocity_error.numpy() == pytest.approx((error**2).mean((1, 2, 3)) / 2, rel=1e-4)


@pytest.mark.long
def test_off_it_changes_no_bit_and_on_every_setting_acts():
    plain, on = weights_of(SliderSettings()), weights_of()
    assert same(plain, weights_of(SliderSettings("off", POSITIVE, NEGATIVE)))
    assert not same(plain, on) and not same(weights_of(PAIRS), plain)
    for change in ({"positive": OTHER}, {"negative": OTHER}, {"neutral": ""}, {"slider_guidance": 2.0}):
        assert not same(on, weights_of(replace(PROMPTS, **change))), change


@pytest.mark.parametrize("slider", [PROMPTS, PAIRS], ids=lambda s: s.slider)
def test_recomputed_blocks_see_the_same_strength(slider):
    assert same(*(weights_of(slider, checkpointing=on) for on in (False, True)))


@pytest.mark.long
def test_after_some_steps_strength_moves_the_prediction_along_the_two_prompts():
    trainer = trained(steps=80, learning_rate=1e-2, rank=8, targets="all", slider=PROMPTS)
    with torch.inference_mode(), borrow(trainer.model, trainer.adapters.deltas()) as borrowed:
        step = Step(trainer, borrowed, [trainer.samples[0]])
        base, positive, negative = (step.velocity(step.case.x_t, *at).flatten()
                                    for at in (("neutral", 0.0), ("positive", 0.0), ("negative", 0.0)))  # fmt: skip
        wanted = positive - negative
        moved = [step.velocity(step.case.x_t, "neutral", s).flatten() - base for s in (-1.0, -0.5, 0.5, 1.0)]
        along = [(torch.dot(each, wanted) / wanted.square().sum()).item() for each in moved]
    assert along == sorted(along) and along[0] < -0.3 and along[-1] > 0.3, along


@pytest.mark.parametrize("change, words", [
    ({"guidance": GuidanceSettings(contrastive_guidance=3.0)}, "contrastive guidance"),
    ({"guidance": GuidanceSettings(true_cfg=3.0)}, "true CFG"),
    ({"differential_guidance": 3.0}, "differential guidance"),
    ({"rollout": RolloutSettings(0.5)}, "scheduled sampling"),
    ({"preservation_options": PreservationSettings(outside_mask=1.0)}, "outside_mask"),
    ({"preservation": 1.0, "preservation_options": PreservationSettings(together=True)}, "'together'"),
])  # fmt: skip
def test_what_needs_an_images_own_target_is_refused(change, words):
    with pytest.raises(UserError, match=f"A slider cannot be learned with {words}"):
        replace(BASE, slider=PROMPTS, **change)


@pytest.mark.parametrize("values, words", [
    (("prompts", "a", ""), "one is empty"), (("prompts", "a", "a"), "are the same"),
])  # fmt: skip
def test_prompts_that_teach_nothing_are_refused(values, words):
    with pytest.raises(UserError, match=words):
        SliderSettings(*values)


def test_what_is_missing_is_named():
    with pytest.raises(UserError, match="write 'never encoded' into 'prompts' of Cache Embeds"):
        trained(slider=replace(PROMPTS, positive="never encoded"))
    with pytest.raises(UserError, match="no single reference of their own shape: robot_01.png, .* Name one folder"):
        trained(slider=PAIRS)
    dataset = replace(BOTH[0].dataset, sources=(replace(BOTH[0].dataset.sources[0], is_reg=True),))
    with pytest.raises(UserError, match="turn is_reg off"):
        trained((replace(BOTH[0], dataset=dataset), replace(BOTH[1], dataset=dataset)), slider=PAIRS)


def test_the_plan_counts_both_directions():
    plain, prompts, pairs = (passes_of(replace(BASE, slider=s)) for s in (SliderSettings(), PROMPTS, PAIRS))
    assert (plain.trained, plain.plain) == (1, 0)
    assert (prompts.trained, prompts.plain) == (2, 3) and (pairs.trained, pairs.plain) == (2, 0)
    assert plain.graphs == prompts.graphs == pairs.graphs == 1
