"""Token routing in a run: which passes see which tokens, masks, routes that a model cannot have, resuming."""

from contextlib import closing
from dataclasses import replace
from functools import cache

import pytest
import torch
from support import brief_flux2, same, state_dict, tiny_caches

from flux2_train.data.dataset import Mask
from flux2_train.errors import UserError
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.memory import MemorySettings
from flux2_train.settings.objective import GuidanceSettings, PreservationSettings
from flux2_train.settings.previews import ValidationLossSettings
from flux2_train.settings.routing import RoutingSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.train import trainer as training
from flux2_train.train.routing import Blocks, Router, resolved

ROUTING = RoutingSettings(0.5, 0, -1, until=100.0)
BASE = TrainingSettings(steps=2, rank=2, targets="tiny", learning_rate=2e-3, validation_items=0, routing=ROUTING)


@pytest.mark.parametrize("settings, blocks", [
    (RoutingSettings(0.5), ((2, 22, 0.5),)),
    (RoutingSettings(0.5, -20, -1), ((5, 24, 0.5),)),
    (RoutingSettings(0.5, 10, 12, more_routes=((0, 3, 0.25), (13, -1, 0.9))),
     ((0, 3, 0.25), (10, 12, 0.5), (13, 24, 0.9))),
    (RoutingSettings(1.0, 0, 24, more_routes=((4, 4, 0.5),)), ((4, 4, 0.5),)),  # a route of all tokens is none
    (RoutingSettings(), ()),
])  # fmt: skip
def test_blocks_are_counted_through_and_from_the_end(settings, blocks):
    assert resolved(settings, 25) == tuple(Blocks(*each) for each in blocks)


@pytest.mark.parametrize("settings, message", [
    (RoutingSettings(0.5, 0, 25), "names block 25, but the model has 25 blocks"),
    (RoutingSettings(0.5, -26, 3), "names block -26"),
    (RoutingSettings(0.5, 5, 3), "from block 5 to block 3"),
    (RoutingSettings(0.5, 2, 9, more_routes=((9, 12, 0.5),)), "overlap: blocks 2 to 9 and 9 to 12"),
])  # fmt: skip
def test_routes_that_a_model_cannot_have_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        resolved(settings, 25)


@pytest.mark.parametrize("text", ["10=0.5", "10..20", "a..b=0.5", "10..20=x"])
def test_a_route_that_is_written_wrongly_is_refused_by_its_name(text):
    with pytest.raises(UserError, match="more_routes has"):
        RoutingSettings(more_routes=text)


def test_a_route_is_read_from_text():
    assert RoutingSettings(more_routes="10..20=0.25; -3..-1=0.5").more_routes == ((10, 20, 0.25), (-3, -1, 0.5))


def test_nothing_is_drawn_where_nothing_skips():
    trainer = new_trainer(brief_flux2(), *tiny_caches(), BASE)
    batch = [trainer.samples[0]]
    for settings, step in ((RoutingSettings(), 1), (RoutingSettings(0.5, 0, 1, until=50.0), 6),
                           (RoutingSettings(0.5, 0, 1, ramp=50.0), 1)):  # fmt: skip
        generator = torch.Generator().manual_seed(3)
        assert Router(settings, 3, 10).draw(batch, step, generator) == ()
        assert torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state())


def masked(caches, share):
    """The caches with masks that are bright at a share of the places, drawn for each image."""
    embeds, latents = caches
    dice, grids, items = torch.Generator().manual_seed(5), dict(latents.latents), []
    for item in latents.dataset.items:
        mask = Mask(item.view, alpha=True)
        bright = (torch.rand(1, 1, *item.view.latent_shape[2:], generator=dice) < share).float()
        grids[mask] = (bright + 0.1) / (bright + 0.1).mean()
        items.append(replace(item, mask=mask))
    dataset = replace(latents.dataset, items=tuple(items))
    return replace(embeds, dataset=dataset), replace(latents, dataset=dataset, latents=grids)


def test_tokens_under_a_bright_mask_never_skip():
    trainer = new_trainer(brief_flux2(), *masked(tiny_caches(), 0.4), BASE)
    batch = [s for s in trainer.samples if s.shape == trainer.samples[0].shape]
    router = Router(replace(ROUTING, selection_ratio=0.1, keep_mask=True), 3, 10)
    for step in range(1, 6):
        (route,) = router.draw(batch, step, trainer.generator)
        for kept, sample in zip(route.kept, batch, strict=True):
            bright = (sample.mask.flatten() > sample.mask.mean()).nonzero().flatten().tolist()
            assert bright and set(bright) <= set(kept.tolist())


@pytest.fixture
def passes(monkeypatch):
    """(routes, whether gradients are kept, prompts) of each pass of the model, in order."""
    seen, velocity = [], training.velocity

    def noting(model, x_t, t, conditions, routes=()):
        kept = [(route.first, route.last, route.kept.tolist()) for route in routes]
        seen.append((kept, torch.is_grad_enabled(), [c.embeds.sum().item() for c in conditions]))
        return velocity(model, x_t, t, conditions, routes)

    monkeypatch.setattr(training, "velocity", noting)
    return seen


def trained(caches=None, **changes):
    trainer = new_trainer(brief_flux2(), *(caches or tiny_caches()), replace(BASE, **changes))
    with torch.inference_mode(), closing(trainer.run()) as run:
        list(run)
    return trainer


@pytest.mark.parametrize("together", [False, True])
def test_preservation_and_its_prior_see_the_tokens_of_the_learning_pass(passes, together):
    trained(preservation=1.0, preservation_options=PreservationSettings(together=together, every=1), steps=1, batch=2)
    if together:
        (both, gradient, _), (prior, plain, _) = passes
        assert gradient and not plain
        assert [(first, last, kept[: len(kept) // 2]) for first, last, kept in both] == prior
        assert [(first, last, kept[len(kept) // 2 :]) for first, last, kept in both] == prior
    else:
        (learn, _, texts), (preserve, _, classes), (prior, gradient, of_prior) = passes
        assert learn == preserve == prior != [] and not gradient
        assert texts != classes == of_prior


def test_what_only_a_target_needs_is_not_routed(passes):
    """The base model's prediction outside masks and of regularisation images, and contrastive guidance's."""
    embeds, latents = masked(tiny_caches(), 0.5)
    dataset = replace(latents.dataset, sources=(replace(latents.dataset.sources[0], base_target=True),))
    caches = replace(embeds, dataset=dataset), replace(latents, dataset=dataset)
    trained(caches, steps=1, guidance=GuidanceSettings(contrastive_guidance=3.0),
            preservation_options=PreservationSettings(outside_mask=1.0))  # fmt: skip
    assert [bool(routes) for routes, gradient, _ in passes if gradient] == [True]
    assert len(passes) == 3 and not any(routes for routes, gradient, _ in passes if not gradient)


def test_true_cfg_mixes_two_predictions_of_the_same_tokens(passes):
    trained(steps=1, guidance=GuidanceSettings(true_cfg=3.0))
    (one, _, _), (other, _, _) = passes
    assert one == other != []


def test_validation_is_not_routed(passes):
    trained(steps=1, validation_items=2, validation_loss=ValidationLossSettings(every=1))
    assert [bool(routes) for routes, gradient, _ in passes if gradient] == [True]
    assert not any(routes for routes, gradient, _ in passes if not gradient) and len(passes) > 3


def test_a_resumed_run_draws_the_tokens_that_the_whole_run_draws():
    config = replace(BASE, steps=4, batch=2)
    whole = trained(steps=4, batch=2)
    first = new_trainer(brief_flux2(), *tiny_caches(), config)
    with torch.inference_mode(), closing(first.run()) as run:
        for _ in run:
            if first.step == 2:
                break
    second = new_trainer(brief_flux2(), *tiny_caches(), config)
    second.load_state_dict(first.state_dict())
    with torch.inference_mode(), closing(second.run()) as run:
        list(run)
    assert same(state_dict(whole.adapters, torch.float32), state_dict(second.adapters, torch.float32))


def test_micro_batches_learn_what_the_batch_learns():
    one, two = (trained(batch=2, steps=1, memory=MemorySettings(micro_batch=size)) for size in (1, 2))
    assert one.history.losses[0] == pytest.approx(two.history.losses[0], rel=1e-5)


@cache
def weights_of(settings):
    return state_dict(trained(steps=4, routing=settings).adapters, torch.float32)


@pytest.mark.parametrize("settings", [
    RoutingSettings(1.0, 1, -1, until=50.0, ramp=20.0, keep_mask=True), RoutingSettings(0.5, 0, 0, until=0.0),
])  # fmt: skip
def test_off_it_changes_no_bit(settings):
    assert same(weights_of(RoutingSettings()), weights_of(settings))


ROUTED = RoutingSettings(0.5, 0, 1, until=100.0)


@pytest.mark.parametrize("settings", [
    RoutingSettings(), replace(ROUTED, selection_ratio=0.75), replace(ROUTED, start_layer_idx=1),
    replace(ROUTED, end_layer_idx=2), replace(ROUTED, until=50.0), replace(ROUTED, ramp=75.0),
    replace(ROUTED, more_routes=((2, 2, 0.5),)),
], ids=str)  # fmt: skip
def test_every_setting_acts(settings):
    """But for keep_mask, which needs masks."""
    assert not same(weights_of(ROUTED), weights_of(settings))


@pytest.mark.long
def test_the_last_steps_are_trained_without_routes(passes):
    trained(steps=10, routing=replace(ROUTING, until=70.0))
    assert [bool(routes) for routes, _, _ in passes] == [True] * 7 + [False] * 3
