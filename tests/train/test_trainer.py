"""The trainer on nano: it learns, it is repeatable, every option acts, and bad inputs are refused before any work."""

from contextlib import closing
from dataclasses import replace

import comfy.model_management
import pytest
import torch
from safetensors import safe_open
from support import same, state_dict, tiny_flux1

from flux2_train import events
from flux2_train.data.samples import samples
from flux2_train.errors import UserError
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.results import write_results
from flux2_train.settings.objective import GuidanceSettings, PreservationSettings
from flux2_train.settings.optimizer import OptimizerSettings
from flux2_train.settings.training import TrainingSettings

SHORT = TrainingSettings(name="short", steps=3, epochs=1, rank=4, learning_rate=2e-3, validation_items=0)


@pytest.fixture(scope="module")
def nano(brief_nano):
    return brief_nano


def train(nano, robot, config=SHORT, **changes):
    trainer = new_trainer(nano.model, robot.embeds, robot.latents, replace(config, **changes))
    with torch.inference_mode(), closing(trainer.run()) as run:  # as a node runs it
        received = list(run)
    return trainer, received


def lora_of(nano, robot, **changes):
    return state_dict(train(nano, robot, **changes)[0].adapters, torch.float32)


@pytest.fixture(scope="module")
def plain(nano, robot):
    return lora_of(nano, robot)


def validation_fall(nano, robot, steps):
    trainer, received = train(nano, robot, steps=steps, validation_items=3, learning_rate=4e-3, rank=8)
    first, last = (e.loss for e in received if isinstance(e, events.Validated))
    assert trainer.history.validation == {0: first, steps: last}
    return (first - last) / first


@pytest.mark.long
def test_the_loss_falls(nano, robot):
    assert validation_fall(nano, robot, 25) > 0.15


@pytest.mark.long
def test_without_optimizer_steps_it_does_not(nano, robot, monkeypatch):
    """So the test above can fail: it measures learning and nothing else."""
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    assert validation_fall(nano, robot, 3) == 0


def test_the_same_seed_gives_the_same_lora(nano, robot, plain):
    assert same(plain, lora_of(nano, robot))
    assert not same(plain, lora_of(nano, robot, seed=1))


@pytest.mark.long
def test_a_folders_own_batch_is_trained_and_planned_like_the_runs(nano, robot):
    dataset = replace(robot.latents.dataset, sources=(replace(robot.latents.dataset.sources[0], batch=2),))
    own = replace(robot, embeds=replace(robot.embeds, dataset=dataset), latents=replace(robot.latents, dataset=dataset))
    trainer, received = train(nano, own)
    assert trainer.memory.work.batch == 2 and len([e for e in received if isinstance(e, events.Stepped)]) == 3
    assert same(state_dict(trainer.adapters, torch.float32), lora_of(nano, robot, batch=2))


@pytest.mark.parametrize("change", [
    {"alpha": 8.0}, {"batch": 2}, {"accumulate": 2}, {"learning_rate": 1e-3}, {"preservation": 1.0},
    {"differential_guidance": 3.0}, {"targets": "tiny"}, {"rank": 2}, {"steps": 2},
    {"optimizer": OptimizerSettings(weight_decay=0.5)}, {"optimizer": OptimizerSettings(max_grad_norm=1e-9)},
], ids=lambda c: next(iter(c)))  # fmt: skip
def test_every_option_acts(nano, robot, plain, change):
    assert not same(plain, lora_of(nano, robot, **change))


@pytest.mark.long
@pytest.mark.parametrize("change", [
    {"alpha": 4.0}, {"checkpointing": False}, {"preservation": 0.0}, {"differential_guidance": 1.0}, {"epochs": 7},
    {"validation_items": 2}, {"guidance": GuidanceSettings(3.5)},
], ids=lambda c: next(iter(c)))  # fmt: skip
def test_what_is_off_changes_no_bit(nano, robot, plain, change):
    assert same(plain, lora_of(nano, robot, **change))


@pytest.mark.long
def test_references_reach_the_model(nano, robot, plain):
    items = tuple(replace(item, references=(robot.dataset.items[0].view,)) for item in robot.dataset.items)
    dataset = replace(robot.dataset, items=items)
    edits = replace(
        robot,
        dataset=dataset,
        embeds=replace(robot.embeds, dataset=dataset),
        latents=replace(robot.latents, dataset=dataset),
    )
    assert not same(plain, lora_of(nano, edits))


@pytest.mark.long
def test_epochs_see_everything(nano, robot):
    trainer, _ = train(nano, robot, steps=0, epochs=2, rank=1)
    assert len(trainer.history.losses) == trainer.total == 2 * len(robot.dataset.items)


@pytest.mark.long
def test_preservation_holds_the_class_word(nano, robot):
    """With it, the adapted model stays nearer to the base model where the class word is used."""

    each_step = {"steps": 12, "learning_rate": 4e-3, "preservation_options": PreservationSettings(every=1)}

    def drift(weight):
        trainer, received = train(nano, robot, preservation=weight, **each_step)
        sample = samples(robot.embeds, robot.latents)[0]
        sample = replace(sample, embeds=sample.class_embeds)
        from flux2_train.host.borrowed.borrow import borrow, training_mode

        with borrow(nano.model, trainer.adapters.deltas()) as borrowed, training_mode(), torch.no_grad():
            x, t = torch.randn(sample.latent.shape, generator=torch.Generator().manual_seed(3)), torch.tensor([0.7])
            x, t = x.to(borrowed.load_device), t.to(borrowed.load_device)
            adapted = trainer.predict(borrowed, x, t, [sample])
            with trainer.adapters.at_strength(0.0):
                base = trainer.predict(borrowed, x, t, [sample])
        if weight:
            assert all(e.preservation > 0 for e in received if isinstance(e, events.Stepped) and e.step > 1)
        return (adapted - base).norm().item()

    assert drift(10.0) < 0.7 * drift(0.0)


@pytest.mark.long
def test_the_model_is_bit_identical_after_training(nano, robot):
    before = {k: v.clone() for k, v in nano.model.model.state_dict().items()}
    train(nano, robot)
    after = nano.model.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not [m for m in nano.model.model.modules() if "forward" in m.__dict__]


@pytest.mark.long
def test_a_listener_that_raises_leaves_everything_in_order(nano, robot, plain):
    trainer = new_trainer(nano.model, robot.embeds, robot.latents, SHORT)
    with pytest.raises(comfy.model_management.InterruptProcessingException), closing(trainer.run()) as run:
        for event in run:
            if isinstance(event, events.Stepped):
                raise comfy.model_management.InterruptProcessingException
    assert len(trainer.history.losses) == 1
    assert comfy.model_management.in_training is False
    assert not [m for m in nano.model.model.modules() if "forward" in m.__dict__]
    assert same(plain, lora_of(nano, robot))


@pytest.mark.long
def test_results_are_written_with_metadata_and_nothing_is_overwritten(nano, robot, tmp_path):
    trainer, _ = train(nano, robot, name="zbot", validation_items=1)
    folder = RunFolder.create(tmp_path / "runs", "zbot")
    first = write_results(trainer, tmp_path / "loras", folder)
    second = write_results(trainer, tmp_path / "loras", folder, stopped=True)
    assert (first.lora_path.name, second.lora_path.name) == ("zbot.safetensors", "zbot_step3.safetensors")
    assert sorted(p.name for p in first.folder.iterdir()) == ["loss.csv", "loss.png", "report.json"]
    assert len((first.folder / "loss.csv").read_text().splitlines()) == 1 + 3
    with safe_open(first.lora_path, "pt") as file:
        header = file.metadata()
        assert set(file.keys()) == set(first.lora)
    assert header["modelspec.trigger_phrase"] == "zbot"
    assert header["ss_network_dim"] == header["ss_network_alpha"] == "4"
    assert header["modelspec.architecture"] == "Flux.2-nano/lora"


def test_nothing_flux1_gets_to_work(robot):
    with pytest.raises(UserError, match="needs a FLUX.2 model"):
        new_trainer(tiny_flux1(), robot.embeds, robot.latents, SHORT)


def test_preservation_names_what_is_missing(nano, robot):
    bare = replace(robot.dataset, sources=(replace(robot.dataset.sources[0], class_word=""),))
    with pytest.raises(UserError, match="Dataset Folder has no class word"):
        new_trainer(nano.model, replace(robot.embeds, dataset=bare), replace(robot.latents, dataset=bare),
                replace(SHORT, preservation=1.0))  # fmt: skip


@pytest.mark.parametrize("change, words", [
    ({"name": "a/b"}, "cannot be a file name"), ({"name": "  "}, "cannot be a file name"), ({"rank": 0}, "rank is 0"),
    ({"accumulate": 0}, "accumulate is 0"),
    ({"steps": 0, "epochs": 0}, "steps and epochs are both 0"), ({"learning_rate": 0.0},
    "learning_rate is 0: nothing would be learned"),
    ({"targets": "most"}, "targets is 'most'"), ({"preservation": -1.0}, "preservation is -1; it must be at least 0"),
])  # fmt: skip
def test_bad_settings_are_refused_with_their_value(change, words):
    with pytest.raises(UserError, match=words):
        replace(SHORT, **change)


def spoiled(nano, robot, names, config):
    """A trainer for which the latents of these images are no numbers."""
    bad = {k: torch.full_like(v, float("nan")) for k, v in robot.latents.latents.items() if k.path.name in names}
    latents = replace(robot.latents, latents={**robot.latents.latents, **bad})
    return new_trainer(nano.model, robot.embeds, latents, config)


@pytest.mark.long
def test_a_loss_that_is_no_number_leaves_its_step_out(nano, robot):
    name = robot.dataset.items[1].path.name
    trainer = spoiled(nano, robot, {name}, replace(SHORT, steps=6))
    with torch.inference_mode(), closing(trainer.run()) as run:
        received = list(run)
    (warned,) = [e for e in received if isinstance(e, events.Warned) and "left out" in e.text]
    assert name in warned.text and warned.pictures == (name,)
    assert len(trainer.history.losses) == 5 and trainer.bad_losses.total == 1
    assert all(torch.isfinite(p).all() for p in trainer.adapters.parameters())


@pytest.mark.long
def test_losses_that_are_no_numbers_in_a_row_stop_the_run_before_the_adapters_are_spoiled(nano, robot):
    trainer = spoiled(nano, robot, {item.path.name for item in robot.dataset.items}, replace(SHORT, steps=20))
    with (
        pytest.raises(UserError, match="The loss is nan after 0 steps, 5 times in a row"),
        closing(trainer.run()) as run,
    ):
        list(run)
    assert all(torch.isfinite(p).all() for p in trainer.adapters.parameters())
