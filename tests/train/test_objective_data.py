"""What a data set says about its samples reaches the loss and the steps."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch
from support import brief_flux2, tiny_caches
from test_objective import BASE, mse, step

from flux2_train.data.dataset import Mask
from flux2_train.errors import UserError
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.objective import PreservationSettings


def with_samples(case, *changes):
    return replace(case, samples=[replace(s, **c) for s, c in zip(case.samples, changes, strict=True)])


def test_masks_and_weights_multiply_the_loss_and_off_changes_no_bit():
    with step() as (_, objective, case):
        mask = torch.rand(1, 1, *case.target.shape[-2:])
        mask /= mask.mean()
        error = (objective.predict(case).detach() - case.target).double().square().numpy()
        loss = objective.learn(with_samples(case, {"mask": mask}, {"weight": 0.25}), {}).loss.tolist()
        assert loss == pytest.approx([(error[0] * mask[0].numpy()).mean(), error[1].mean() / 4], rel=1e-5)
        off = with_samples(case, {"mask": None}, {"weight": 1.0})
        assert torch.equal(objective.learn(off, {}).loss, objective.learn(case, {}).loss)


def test_base_targets_are_what_the_model_predicts_without_adapters():
    with step() as (_, objective, case):
        with torch.no_grad():
            base, predicted = objective._base(case), objective.predict(case)
        assert not torch.allclose(base, predicted)
        kept = with_samples(case, {}, {"is_reg": True, "base_target": True})
        loss = objective.learn(kept, {}).loss.tolist()
        expected = mse((predicted - torch.stack((case.target[0], base[1]))).double().numpy())
        assert loss == pytest.approx(expected, rel=1e-4)


def test_preservation_leaves_regularisation_images_alone():
    with step(preservation=1.0) as (_, objective, case):
        first, second = objective.preserve(with_samples(case, {"is_reg": True}, {}), {}).preservation.tolist()
        plain = objective.preserve(case, {}).preservation.tolist()
        assert first == 0 and second == plain[1] > 0 and plain[0] > 0


def trained(dataset, embeds, latents, **changes):
    config = replace(BASE, **changes)
    trainer = new_trainer(brief_flux2(), replace(embeds, dataset=dataset), replace(latents, dataset=dataset), config)
    with torch.inference_mode(), closing(trainer.run()) as run:
        list(run)
    return [p.detach().clone() for p in trainer.adapters.trainable()]


@pytest.mark.long
def test_a_run_draws_captions_as_the_data_set_says():
    """Dropping every caption is training without captions, and not what training with them is."""
    embeds, latents = tiny_caches()
    dataset = latents.dataset
    always = replace(dataset, sources=(replace(dataset.sources[0], caption_dropout=1.0),))
    blank = replace(dataset, items=tuple(replace(i, captions=("",), class_captions=("",)) for i in dataset.items))
    dropped, without, plain = (trained(data, embeds, latents) for data in (always, blank, dataset))
    assert all(torch.equal(a, b) for a, b in zip(dropped, without, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(dropped, plain, strict=True))


def test_preservation_names_the_folder_and_the_widget():
    embeds, latents = tiny_caches()
    bare = replace(latents.dataset.sources[0], class_word="")
    both = latents.dataset.chained(replace(latents.dataset, sources=(bare,)))
    config = replace(BASE, preservation=1.0)
    with pytest.raises(UserError, match=r"no class word \(.*\); fill in 'class_word'"):
        new_trainer(brief_flux2(), replace(embeds, dataset=both), replace(latents, dataset=both), config)
    reg = latents.dataset.chained(replace(latents.dataset, sources=(replace(bare, is_reg=True),)))
    new_trainer(brief_flux2(), replace(embeds, dataset=reg), replace(latents, dataset=reg), config)


def masked_caches():
    """The tiny caches with a mask on every image."""
    embeds, latents = tiny_caches()
    generator, items, grids = torch.Generator().manual_seed(5), [], dict(latents.latents)
    for item in latents.dataset.items:
        mask = Mask(item.view, alpha=True)
        values = torch.rand(1, 1, *item.view.latent_shape[2:], generator=generator)
        grids[mask] = values / values.mean()
        items.append(replace(item, mask=mask))
    dataset = replace(latents.dataset, items=tuple(items))
    return replace(embeds, dataset=dataset), replace(latents, dataset=dataset, latents=grids)


def test_outside_a_mask_the_base_models_prediction_is_kept():
    with step(masked_caches(), preservation_options=PreservationSettings(outside_mask=100.0)) as (_, objective, case):
        case = with_samples(case, {}, {"mask": None})
        with torch.no_grad():
            base, predicted = objective._base(case).double().numpy(), objective.predict(case).double().numpy()
        m, target = case.samples[0].mask.double().numpy(), case.target.double().numpy()
        dark = (1 - m / m.max()) / (1 - m / m.max()).mean()
        inside = ((predicted - target)[:1] ** 2 * m).mean()
        outside = ((predicted - base)[:1] ** 2 * dark).mean()
        unmasked = mse((predicted - target)[1:])[0]
        loss = objective.learn(case, {}).loss.tolist()
        assert loss == pytest.approx([inside + 100 * outside, unmasked], rel=1e-5) and outside > 1e-4 * inside


@pytest.mark.long
def test_keeping_what_is_outside_masks_acts_and_off_changes_no_bit():
    embeds, latents = masked_caches()
    plain = trained(latents.dataset, embeds, latents)
    for weight, equal in ((0.0, True), (0.5, False)):
        found = trained(
            latents.dataset, embeds, latents, preservation_options=PreservationSettings(outside_mask=weight)
        )
        assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True)) == equal
