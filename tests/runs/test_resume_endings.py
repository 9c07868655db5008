"""However a step ends, what is saved is what can be gone on from, bit by bit."""

# ruff: noqa: F401, F811 - pytest finds fixtures by the names that are imported, and gives them as arguments

from dataclasses import replace

import comfy.model_management
import pytest
import torch
from resuming import CUT, EVERY, Listener, assert_same, caches, model, session, steps, trainer
from safetensors.torch import load_file

from flux2_train import events
from flux2_train.errors import UserError
from flux2_train.runs import resume
from flux2_train.runs.folder import FAILED, FINISHED, RunFolder
from flux2_train.settings.objective import GuardSettings
from flux2_train.settings.optimizer import EmaSettings
from flux2_train.settings.saving import CheckpointSettings
from flux2_train.train.guards import WINDOW


@pytest.mark.long
def test_a_step_cut_in_the_middle_leaves_no_trace(trainer, tmp_path, monkeypatch):
    """ComfyUI's interrupt comes in the forward or backward pass; what the step drew is given back."""
    whole = steps(trainer())
    cut = trainer()

    def cancel(event):
        if isinstance(event, events.Completed) and event.step == CUT:
            comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        session(cut, tmp_path, cancel)
    assert cut.step == CUT and not any(p.grad is not None for p in cut.adapters.parameters())
    assert cut.drawn == CUT  # strata and lists of times go on from there
    rest = trainer()
    session(rest, tmp_path)
    assert_same(rest.state_dict()["adapter"], whole.state_dict()["adapter"])


@pytest.mark.long
def test_an_update_cut_in_the_middle_is_not_saved(trainer, tmp_path, monkeypatch):
    """The weights are of no step then: the run goes on from the checkpoint before."""
    whole, listener = steps(trainer()), Listener()
    cut = trainer(checkpoints=CheckpointSettings(every_steps=2))
    step = cut.optimizer.step

    def fail():
        if cut.step == 4:
            raise torch.OutOfMemoryError("no room for an update")
        step()

    cut.optimizer.step = fail
    with pytest.raises(UserError, match="ran out of memory in step 5; step 4 is saved"):
        session(cut, tmp_path, listener)
    assert any("cut short while it changed the weights" in e.text for e in listener.of(events.Warned))
    rest, listener = trainer(), Listener()
    session(rest, tmp_path, listener)
    assert listener.of(events.Resumed)[0].step == 4
    assert_same(rest.state_dict()["adapter"], whole.state_dict()["adapter"])


def noisier(draw, factor):
    """``Trainer.draw`` with its noise multiplied."""

    def drawing(batch, step):
        drawn = draw(batch, step)
        return replace(drawn, noise=drawn.noise * factor)

    return drawing


def test_losses_that_are_no_numbers_save_before_they_stop(trainer, tmp_path):
    spoiled = trainer(guard=GuardSettings(bad_losses=2))

    def spoil(event):
        if isinstance(event, events.Completed) and event.step == CUT:
            spoiled.draw = noisier(spoiled.draw, float("nan"))

    with pytest.raises(UserError, match="The loss is nan after 2 steps, 2 times in a row"):
        session(spoiled, tmp_path, spoil)
    folder = RunFolder(tmp_path / "runs" / "run")
    found = resume.newest(folder)
    assert found.checkpoint.about.step == 3 and (tmp_path / "loras" / "run_step2.safetensors").is_file()
    assert all(torch.isfinite(t).all() for t in found.state["adapter"].values())
    assert folder.about()["status"] == "failed" and "The loss is nan" in folder.about()["why"]


@pytest.mark.long
def test_a_loss_that_runs_away_saves_before_it_stops_and_may_go_on_more_slowly(trainer, tmp_path):
    guard = {"guard": GuardSettings(divergence=1.5, stop_on_divergence=True), "steps": 200}
    wild, listener = trainer(**guard), Listener()

    def grow(event):
        listener(event)
        if isinstance(event, events.Completed) and event.step == WINDOW + 1:
            wild.draw = noisier(wild.draw, 5)

    with pytest.raises(UserError, match=r"times its lowest .*: training diverges. Lower the learning rate"):
        session(wild, tmp_path, grow)
    step, folder = wild.step, RunFolder(tmp_path / "runs" / "run")
    assert WINDOW < step < 200
    received = [(type(e), e.step if hasattr(e, "step") else None) for e in listener.received][-4:]
    assert received == [(events.Stepped, step - 1), (events.Completed, step - 1), (events.Checkpointed, step),
                    (events.Saved, None)]  # fmt: skip
    assert listener.received[-1].stopped and listener.received[-1].path.name == f"run_step{step}.safetensors"
    saved = load_file(listener.received[-1].path)
    assert saved and all(torch.isfinite(tensor).all() for tensor in saved.values())
    assert folder.about()["status"] == FAILED and "training diverges" in folder.about()["why"]

    calm, listener = trainer(**{**guard, "steps": step + 3}, learning_rate=1e-4), Listener()
    results = session(calm, tmp_path, listener)
    assert [e.step for e in listener.of(events.Resumed)] == [step] and results.lora_path.name == "run.safetensors"
    assert calm.history.rates[-4:] == [2e-3, 1e-4, 1e-4, 1e-4] and len(calm.divergence.recent) == 3


@pytest.mark.long
def test_memory_that_no_stepping_down_helps_is_saved_and_explained(trainer, tmp_path):
    whole, full = steps(trainer()), trainer()

    def fill(event):
        if isinstance(event, events.Completed) and event.step == CUT:
            full._backward = run_out

    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with pytest.raises(UserError, match=r"ran out of memory in step 3; step 2 is saved, and queueing again goes on"):
        session(full, tmp_path, fill)
    assert (tmp_path / "loras" / "run_step2.safetensors").is_file()
    rest = trainer()
    session(rest, tmp_path)
    assert_same(rest.state_dict()["adapter"], whole.state_dict()["adapter"])


def without_optimizer(trainer):
    """A finished session has given the optimizer's state back."""
    return {name: part for name, part in trainer.state_dict().items() if name != "optimizer"}


@pytest.mark.drawn(cases=3)
@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["adamw", "prodigy", "schedulefree"])
@pytest.mark.parametrize("every, again_from", [(2, 5), (3, 4), (0, 1)])
def test_memory_that_ends_in_an_update_costs_time_only(trainer, tmp_path, optimizer, every, again_from):
    """The fifth update is cut in half: one parameter is changed, the next finds no memory."""
    changes = {
        **EVERY[optimizer],
        "checkpoints": CheckpointSettings(every_steps=every),
        "ema": EmaSettings(ema_decay=0.9),
    }
    whole, listener = trainer(**changes), Listener()
    session(whole, tmp_path / "whole")
    cut, failed = trainer(**changes), []
    step = cut.optimizer.step

    def fail():
        if cut.step == 4 and not failed:
            failed.append(True)
            cut.adapters.trainable()[0].data += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        step()

    cut.optimizer.step = fail
    session(cut, tmp_path, listener)
    assert failed and cut.memory.plan.layout.checkpointing != "off"
    assert_same(*map(without_optimizer, (cut, whole)))
    received = [e.text for e in listener.of(events.Warned)]
    again = f" from step {again_from} on" if again_from < 5 else ""
    assert (
        len(received) == 1
        and f"while step 5 changed the weights: repeated{again} with all weights resident" in received[0]
    )
    folder = RunFolder(tmp_path / "runs" / "run")
    assert folder.about()["status"] == FINISHED
    assert folder.plan.read_text() == cut.memory.describe() + "\n" == listener.of(events.Planned)[-1].text + "\n"


@pytest.mark.long
def test_memory_that_ends_between_gradients_and_update_is_repeated(trainer, tmp_path, monkeypatch):
    whole, cut, failed = steps(trainer()), trainer(), []
    clip = torch.nn.utils.clip_grad_norm_

    def fail(*args):
        if cut.step == 2 and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        return clip(*args)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", fail)
    session(cut, tmp_path)
    assert failed
    assert_same(*map(without_optimizer, (cut, whole)))
