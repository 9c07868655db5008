"""A finished run that is queued with more steps, and what interruptions leave behind."""

# ruff: noqa: F401, F811 - pytest finds fixtures by the names that are imported, and gives them as arguments

import re

import pytest
import torch
from resuming import Listener, Stop, assert_same, caches, interrupted, model, session, steps, trainer
from safetensors.torch import load_file

from flux2_train import events
from flux2_train.runs.folder import STOPPED, RunFolder
from flux2_train.settings.optimizer import OptimizerSettings


class Raising:
    """A listener that raises at the first event of a kind."""

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, event):
        if isinstance(event, self.kind):
            raise Stop


@pytest.mark.long
def test_queued_with_more_steps_a_finished_run_goes_on(trainer, tmp_path):
    whole = steps(trainer(steps=7))
    five = session(trainer(), tmp_path)
    longer, listener = trainer(steps=7, checkpointing=True), Listener()
    results = session(longer, tmp_path, listener)
    assert [event.step for event in listener.of(events.Stepped)] == [6, 7] and not listener.of(events.Warned)
    assert_same(longer.state_dict()["adapter"], whole.state_dict()["adapter"])
    assert (results.folder, results.lora_path) == (five.folder, five.lora_path)
    kept = load_file(tmp_path / "loras" / "run_step5.safetensors")
    assert all(torch.equal(kept[name], five.lora[name].to(kept[name].dtype)) for name in kept)
    assert session(trainer(steps=7, checkpointing=True), tmp_path).folder == five.folder  # and is not trained again


@pytest.mark.long
@pytest.mark.parametrize("first, then, words", [
    ({}, {"rank": 3}, "rank was 2 and is 3"),
    ({"optimizer": OptimizerSettings(schedule="cosine")}, {"optimizer": OptimizerSettings(schedule="cosine")},
     r"the learning rate \(schedule 'cosine', warmup 0\) would have been another one in its steps"),
    ({"optimizer": OptimizerSettings(warmup=0.5)}, {"optimizer": OptimizerSettings(warmup=0.5)},
     r"schedule 'constant', warmup 0.5"),
])  # fmt: skip
def test_why_a_finished_run_is_not_made_longer_is_said(trainer, tmp_path, first, then, words):
    session(trainer(**first), tmp_path)
    listener = Listener()
    assert session(trainer(steps=7, **then), tmp_path, listener).folder.name == "run_2"
    (warned,) = listener.of(events.Warned)
    assert re.search(rf"finished run run of 5 steps is not made longer, because .*{words}.*begins anew", warned.text)


@pytest.mark.long
def test_with_a_constant_rate_after_a_warmup_in_steps_it_goes_on(trainer, tmp_path):
    optimizer = {"optimizer": OptimizerSettings(warmup=2)}
    session(trainer(**optimizer), tmp_path)
    assert session(trainer(steps=6, **optimizer), tmp_path).folder.name == "run"


@pytest.mark.long
def test_loras_of_interruptions_are_removed_when_the_run_has_finished(trainer, tmp_path):
    interrupted(trainer, tmp_path)
    (tmp_path / "loras" / "run_step3.safetensors").touch()  # somebody else's
    interrupted(trainer, tmp_path, 4)
    files = lambda: sorted(p.name for p in (tmp_path / "loras").iterdir())  # noqa: E731
    assert files() == ["run_step2.safetensors", "run_step3.safetensors", "run_step4.safetensors"]
    session(trainer(), tmp_path)
    assert files() == ["run.safetensors", "run_step3.safetensors"]


@pytest.mark.long
def test_a_run_that_ended_before_its_first_step_gives_its_name_back(trainer, tmp_path):
    with pytest.raises(Stop):
        session(trainer(), tmp_path, Raising(events.Planned))
    folder = RunFolder(tmp_path / "runs" / "run")
    assert folder.about()["status"] == STOPPED and folder.about()["step"] == 0
    results = session(trainer(), tmp_path)
    assert (results.folder.name, results.lora_path.name) == ("run", "run.safetensors")
