"""Runs that keep checkpoints: disks that are full, patience, steps that become slow."""

import math
import resource
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from support import brief_flux2, tiny_caches, tiny_flux2

from flux2_train import events
from flux2_train.adapters import read
from flux2_train.errors import UserError
from flux2_train.host.system import machine
from flux2_train.host.system.rates import ASSUMED
from flux2_train.runs import checkpoints
from flux2_train.runs.checkpoint_lora import lora_of
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.session import train
from flux2_train.settings.optimizer import OptimizerSettings
from flux2_train.settings.previews import ValidationLossSettings
from flux2_train.settings.saving import CheckpointSettings, SaveSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.train import out_of_memory as retry
from flux2_train.train.guards import Plateau, SlowSteps

NEVER = CheckpointSettings(every_minutes=0)
CONFIG = TrainingSettings(name="run", steps=4, rank=2, learning_rate=2e-3, validation_items=0, checkpointing=False)


@pytest.fixture(scope="module")
def parts():
    return brief_flux2(), *tiny_caches()


@pytest.fixture(scope="module")
def parts_that_overfit():
    """Those whose validation loss rises again within 50 steps: with the whole text."""
    return tiny_flux2(), *tiny_caches()


def session(parts, place, listen=lambda event: None, how="new", **changes):
    trainer = new_trainer(*parts, replace(CONFIG, **changes))
    with torch.inference_mode():
        return trainer, train(trainer, place / "loras", place / "runs", listen, how)


@contextmanager
def no_room(size):
    """Files of this process cannot grow beyond ``size`` bytes: what a full disk answers, from the system itself."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full_in_between(received, size):
    """A listener that notes what is told, and leaves files no more than ``size`` bytes from step 1 to step 4."""
    room = no_room(size)

    def listen(event):
        received.append(event)
        if isinstance(event, events.Stepped) and event.step == 1:
            room.__enter__()
        if isinstance(event, events.Stepped) and event.step == 4:
            room.__exit__(None, None, None)

    return listen


def test_a_full_disk_is_told_and_training_goes_on(parts, tmp_path):
    received = []
    listen = full_in_between(received, 10_000)
    _, results = session(parts, tmp_path, listen, checkpoints=replace(NEVER, every_steps=1))
    warned = [e.text for e in received if isinstance(e, events.Warned)]
    assert warned and all("could not be written to" in text and "the run goes on" in text for text in warned)
    assert results.lora_path.is_file()
    assert [p.name for p in (results.folder / "checkpoints").iterdir()] == ["step_00000004.safetensors"]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's own thread
def test_other_files_of_a_run_do_not_end_it_either(parts, tmp_path):
    received = []
    listen = full_in_between(received, 100)
    _, results = session(
        parts,
        tmp_path,
        listen,
        logs="csv and TensorBoard",
        validation_loss=ValidationLossSettings(per_image=True, per_image_every=1),
    )
    warned = [e.text for e in received if isinstance(e, events.Warned)]
    for what in ("The losses of single images", "The log for tensorboard"):
        assert sum(text.startswith(f"{what} could not be written") for text in warned) == 1
    assert [e.step for e in received if isinstance(e, events.Stepped)] == [1, 2, 3, 4] and results.lora_path.is_file()
    assert (results.folder / "images" / "step_000004.csv").stat().st_size > 100
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_that_cannot_be_written_does_not_end_a_run_either(parts, tmp_path):
    received = []

    def listen(event):
        received.append(event)
        if isinstance(event, events.Started):
            (event.folder / "checkpoints").write_text("in the way")

    _, results = session(parts, tmp_path, listen, checkpoints=replace(NEVER, every_steps=2))
    assert sum("could not be written" in e.text for e in received if isinstance(e, events.Warned)) == 1
    assert results.lora_path.is_file()


@pytest.mark.long
def test_every_kind_of_event_is_told_once_it_happens(parts, tmp_path):
    received = []

    def listen(event):
        received.extend([] if isinstance(event, events.Recorded) else [event])
        if isinstance(event, events.Completed) and event.step == 2 and "goes on" not in received:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session(parts, tmp_path, listen, validation_items=1)
    first = [type(e) for e in received]
    assert first.count(events.Started) == first.count(events.Checkpointed) == first.count(events.Saved) == 1
    assert received[-1].stopped and received[-1].path.name == "run_step2.safetensors"
    received[:] = ["goes on"]
    session(parts, tmp_path, listen, "auto", validation_items=1)
    (resumed,) = [e for e in received if isinstance(e, events.Resumed)]
    assert (resumed.step, resumed.total) == (2, 4)
    assert [e.step for e in received if isinstance(e, events.Completed)] == [3, 4]
    assert [e.step for e in received if isinstance(e, events.Validated)] == [4]
    (saved,) = [e for e in received if isinstance(e, events.Saved)]
    assert not saved.stopped and saved.path.name == "run.safetensors"


def test_patience_counts_validations_without_gain():
    assert not Plateau(0).reached({0: 1.0, 1: 2.0, 2: 3.0})
    assert not Plateau(2).reached({}) and not Plateau(2).reached({0: 1.0, 5: 1.5})
    assert Plateau(2).reached({0: 1.0, 5: 1.5, 10: 1.0})
    assert not Plateau(2).reached({0: 1.0, 5: 1.5, 10: 0.9})


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["adamw", "schedulefree"])
def test_out_of_patience_the_run_ends_and_gives_the_best(parts_that_overfit, tmp_path, optimizer):
    received = []
    trainer, results = session(
        parts_that_overfit, tmp_path, received.append, steps=50, learning_rate=0.02,
        validation_loss=ValidationLossSettings(share=0.3, every=1, selectivity=False),
        checkpoints=replace(NEVER, patience=3),
        optimizer=OptimizerSettings(optimizer), save=SaveSettings(precision="fp32"),
    )  # fmt: skip
    losses = {e.step: e.loss for e in received if isinstance(e, events.Validated) and e.step}
    best = min(losses, key=losses.get)
    assert trainer.total == trainer.step == max(losses) < 50 and losses.keys() == set(range(1, trainer.step + 1))
    assert any(isinstance(e, events.Phase) and "has not fallen for 3 validations" in e.text for e in received)
    kept = {checkpoints.read(path).about.step: path for path in checkpoints.paths(results.folder / "checkpoints")}
    assert kept.keys() == {best, trainer.step}
    saved, expected = read.load(results.lora_path), lora_of(trainer.model, kept[best])
    assert saved.keys() == expected.keys() and all(torch.equal(saved[k], expected[k]) for k in saved)
    assert RunFolder(results.folder).about()["status"] == "finished"


@pytest.mark.long
def test_patience_and_the_best_are_counted_on_after_an_interruption(parts_that_overfit, tmp_path):
    """Cut two validations after the best one, of the three without gain that end the run."""
    asked = {
        "steps": 50, "learning_rate": 8e-3,
        "validation_loss": ValidationLossSettings(share=0.3, every=1, selectivity=False),
        "checkpoints": replace(NEVER, patience=3, keep=1),
    }  # fmt: skip
    whole, expected = session(parts_that_overfit, tmp_path / "whole", **asked)
    at = whole.step - 1

    def cut(event):
        if isinstance(event, events.Completed) and event.step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session(parts_that_overfit, tmp_path, cut, **asked)
    rest, results = session(parts_that_overfit, tmp_path, how="auto", **asked)
    assert rest.step == rest.total == whole.step and rest.history.validation == whole.history.validation
    assert results.lora.keys() == expected.lora.keys()
    assert all(torch.equal(results.lora[name], tensor) for name, tensor in expected.lora.items())
    kept = [[checkpoints.step_of(p) for p in checkpoints.paths(r.folder / "checkpoints")] for r in (results, expected)]
    assert kept[0] == kept[1] == [whole.step - 3, whole.step]


def test_patience_needs_a_best_one_to_give():
    with pytest.raises(UserError, match="set keep to 1 or more and keep_best on"):
        CheckpointSettings(patience=3, keep=0)


def test_steps_that_become_slow_are_told_once():
    guard = SlowSteps()
    assert not any(guard.check(1.0 + 0.5 * (step % 2)) for step in range(40))
    received = [text for _ in range(40) if (text := guard.check(5.0))]
    assert len(received) == 1 and "5 s now and took 1.25 s before" in received[0] and "spills" in received[0]


def test_steps_that_are_slow_from_the_first_on_are_told_by_the_plan():
    guard = SlowSteps()
    assert [guard.check(seconds, 1.0) for seconds in (30.0, 2.9, 2.9, 2.9, 2.9)] == [None] * 5  # the first warms up
    guard = SlowSteps()
    received = [text for _ in range(40) if (text := guard.check(3.1, 1.0))]
    assert (
        len(received) == 1 and "Steps take 3.1 s where the plan expects 1 s." in received[0] and "spills" in received[0]
    )


def test_slow_steps_of_a_processor_are_not_explained_with_a_card():
    guard = SlowSteps()
    assert not any(guard.check(1.0, 0.01, spills=False, on_cpu=True) for _ in range(40))
    told = [text for _ in range(40) if (text := guard.check(5.0, spills=False, on_cpu=True))]
    assert len(told) == 1 and "5 s now and took 1 s before" in told[0]
    assert "The processor trains" in told[0] and "card" not in told[0] and "Windows" not in told[0]


@pytest.mark.long
def test_a_run_that_may_spill_is_compared_with_its_plan(parts, tmp_path, monkeypatch):
    """A step of the tiny model costs far more than its arithmetic would on a card. Nothing of a CPU could spill."""
    monkeypatch.setattr(machine, "rates", lambda device: ASSUMED)  # measured ones depend on what else runs here
    for spills in (False, True):
        received = []
        monkeypatch.setattr(retry, "can_spill", lambda device, spills=spills: spills)
        session(parts, tmp_path, received.append, steps=6)
        slow = [e.text for e in received if isinstance(e, events.Warned) and "where the plan expects" in e.text]
        assert len(slow) == spills


def test_one_slow_step_is_not_told():
    guard = SlowSteps()
    assert not any(guard.check(60.0 if step % 10 == 9 else 1.0) for step in range(200))
    assert guard.best < math.inf


@pytest.mark.long
def test_the_bench_measures_pairs():
    from bench.checkpoints import measure

    found, size = measure(pairs=1, steps=2, rank=1, resolution=64)
    assert found.pairs == 1 and found.median > 0 and size > 1000
