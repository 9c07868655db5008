"""A run that was interrupted and taken up again is the run that was not: same bits, for every part that has a state."""

import json
from contextlib import closing
from dataclasses import replace

import comfy.model_management
import pytest
import torch
from safetensors.torch import load_file
from support import brief_flux2, tiny_caches

from flux2_train.errors import UserError
from flux2_train.run import checkpoints, events, packing, resume
from flux2_train.run.folder import FAILED, FINISHED, STOPPED, RunFolder
from flux2_train.run.guards import WINDOW
from flux2_train.run.session import train
from flux2_train.run.trainer import Trainer
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.base import choices
from flux2_train.settings.objective import GuardSettings, GuidanceSettings
from flux2_train.settings.optimizer import EmaSettings, OptimizerSettings
from flux2_train.settings.saving import CheckpointSettings, SaveSettings
from flux2_train.settings.timesteps import TimestepSettings
from flux2_train.settings.training import TrainingSettings

STEPS, CUT = 5, 2
CONFIG = TrainingSettings(name="run", steps=STEPS, rank=2, learning_rate=2e-3, validation_items=0, checkpointing=False)
EVERY = {
    "adamw": {},
    "prodigy": {"optimizer": OptimizerSettings("prodigy"), "learning_rate": 1.0},
    "lion": {"optimizer": OptimizerSettings("lion")},
    "adafactor": {"optimizer": OptimizerSettings("adafactor")},
    "schedulefree": {"optimizer": OptimizerSettings("schedulefree", warmup=2)},
    **{
        name: {"optimizer": OptimizerSettings(schedule=name, warmup=2)}
        for name in choices(OptimizerSettings, "schedule")
    },
    "ema": {"ema": EmaSettings(ema_decay=0.9, ema_warmup=2)},
    "schedulefree with ema": {"optimizer": OptimizerSettings("schedulefree"), "ema": EmaSettings(ema_decay=0.9)},
    "dora": {"adapter": AdapterSettings(dora=True)},
    "lokr": {"adapter": AdapterSettings(kind="lokr", lokr_decompose_both=True)},
    "loha": {"adapter": AdapterSettings(kind="loha")},
    "dropout": {"adapter": AdapterSettings(dropout=0.3)},
    "lora plus": {"adapter": AdapterSettings(lora_plus=4)},
    "strata": {"timesteps": TimestepSettings(strata=4)},
    "round robin": {"timesteps": TimestepSettings(distribution="round robin", values=(0.2, 0.5, 0.9))},
    "drawn guidance": {"guidance": GuidanceSettings(guidance_max=4.0)},
    "preservation": {"preservation": 1.0},
    "batch and accumulate": {"batch": 2, "accumulate": 2},
}


class Stop(BaseException):
    """What a listener raises, as ComfyUI's interrupt does."""


@pytest.fixture(scope="module")
def caches():
    return tiny_caches()


@pytest.fixture(scope="module")
def model():
    return brief_flux2()


@pytest.fixture
def trainer(model, caches):
    """Trainers on one model and data set: ``trainer(steps=4)``."""

    def make(**changes):
        return Trainer(model, *caches, replace(CONFIG, **changes))

    return make


def steps(trainer, count=None):
    """Run to the end, or to the end of the step with that number."""
    with torch.inference_mode(), closing(trainer.run()) as run:
        for event in run:
            if isinstance(event, events.Completed) and event.step == count:
                break
    return trainer


def assert_same(a, b):
    """Equal to the last bit; of what was measured, all but the seconds."""
    (first, tensors), (second, others) = packing.pack(a), packing.pack(b)
    assert first == second
    assert tensors.keys() == others.keys()
    for name in tensors.keys() - {"history.seconds"}:
        assert tensors[name].dtype == others[name].dtype and torch.equal(tensors[name], others[name]), name


@pytest.mark.parametrize("changes", EVERY.values(), ids=EVERY)
def test_taken_up_in_the_middle_it_ends_as_the_whole_run(trainer, changes, tmp_path):
    whole = steps(trainer(**changes)).state_dict()
    state = steps(trainer(**changes), CUT).state_dict()
    about = checkpoints.About(CUT, STEPS, {}, "", 1)
    path = checkpoints.Snapshot.of(about, state).write(tmp_path)
    rest = trainer(**changes)
    with torch.inference_mode():
        rest.load_state_dict(checkpoints.read(path).load())
    assert_same(rest.state_dict(), state)
    assert rest.step == CUT
    assert_same(steps(rest).state_dict(), whole)


def test_a_step_draws_from_nobody_elses_random_numbers(trainer):
    before = torch.random.get_rng_state()
    steps(trainer(adapter=AdapterSettings(dropout=0.3)))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_part_of_the_state_matters(trainer):
    """So the tests above can fail: without it the rest of the run is another one."""
    whole = steps(trainer()).state_dict()
    state = steps(trainer(), CUT).state_dict()
    for part in ("generator", "optimizer", "step"):
        rest, fresh = trainer(), trainer().state_dict()
        with torch.inference_mode():
            rest.load_state_dict({**state, part: fresh[part]})
        with pytest.raises(AssertionError):
            assert_same(steps(rest).state_dict()["adapter"], whole["adapter"])


class Listener:
    """Notes what it is told, and raises after the step with that number."""

    def __init__(self, at=None, error=Stop):
        self.at, self.error, self.told = at, error, []

    def __call__(self, event):
        self.told.append(event)
        if isinstance(event, events.Stepped) and event.step == self.at:
            raise self.error

    def of(self, kind):
        return [event for event in self.told if isinstance(event, kind)]


def session(trainer, place, listener=None, how=resume.AUTO):
    with torch.inference_mode():
        return train(trainer, place / "loras", place / "runs", listener or Listener(), how)


def interrupted(trainer, place, at=CUT, **changes):
    with pytest.raises(Stop):
        session(trainer(**changes), place, Listener(at))
    return RunFolder(place / "runs" / "run")


@pytest.mark.long
def test_queued_again_it_goes_on_by_itself(trainer, tmp_path):
    whole = steps(trainer())
    folder = interrupted(trainer, tmp_path)
    assert folder.about()["status"] == STOPPED and folder.about()["step"] == CUT
    assert (tmp_path / "loras" / "run_step2.safetensors").is_file()
    rest, listener = trainer(), Listener()
    results = session(rest, tmp_path, listener)
    (event,) = listener.of(events.Resumed)
    assert (event.step, event.total, event.path.name) == (CUT, STEPS, "step_00000002.safetensors")
    assert_same(rest.state_dict()["adapter"], whole.state_dict()["adapter"])
    assert [e.step for e in listener.of(events.Stepped)] == [3, 4, 5]
    assert results.folder == folder.path and results.lora_path.name == "run.safetensors"
    assert folder.about()["status"] == FINISHED and folder.about()["resumed"][0]["step"] == CUT


@pytest.mark.long
def test_a_finished_run_is_left_alone_and_new_means_new(trainer, tmp_path):
    interrupted(trainer, tmp_path)
    anew = session(trainer(), tmp_path, how=resume.NEW)
    assert anew.folder.name == "run_2"
    again = session(trainer(rank=3), tmp_path)  # the last one of that name has finished; the interrupted one is older
    assert again.folder.name == "run_3"


def test_a_finished_run_is_not_trained_again(trainer, tmp_path):
    """As after a restart of the server, when ComfyUI's own cache is gone."""
    first, others, listener = trainer(), trainer(), Listener()
    done = session(first, tmp_path)
    again = session(others, tmp_path, listener)
    assert (again.lora_path, again.folder, again.certificate) == (done.lora_path, done.folder, done.certificate)
    assert again.lora.keys() == done.lora.keys() and again.lora.header.items() >= done.lora.header.items()
    assert all(torch.equal(again.lora[name], done.lora[name]) for name in done.lora)
    assert not listener.of(events.Stepped) and others.history.losses == first.history.losses


@pytest.mark.long
@pytest.mark.parametrize("change", [{"seed": 1}, {"learning_rate": 1e-3}, {"steps": 6}], ids=lambda c: next(iter(c)))
def test_a_finished_run_with_any_other_setting_is(trainer, tmp_path, change):
    session(trainer(), tmp_path)
    assert session(trainer(**change), tmp_path).folder.name == "run_2"


@pytest.mark.long
def test_a_finished_run_whose_lora_is_gone_is(trainer, tmp_path):
    session(trainer(), tmp_path).lora_path.unlink()
    assert session(trainer(), tmp_path).folder.name == "run_2"


@pytest.mark.long
def test_a_lora_that_could_not_be_saved_is_saved_without_training_again(trainer, tmp_path):
    lokr, whole = {"adapter": AdapterSettings(kind="lokr")}, Listener()
    with pytest.raises(UserError, match="'diffusers' cannot carry the LoKr"):
        session(trainer(**lokr, save=SaveSettings("diffusers")), tmp_path, whole)
    assert len(whole.of(events.Stepped)) == STEPS
    assert RunFolder(tmp_path / "runs" / "run").about()["status"] == FAILED
    listener = Listener()
    results = session(trainer(**lokr), tmp_path, listener)
    assert results.lora_path.name == "run.safetensors" and not listener.of(events.Stepped)
    assert results.folder.name == "run" and RunFolder(results.folder).about()["status"] == FINISHED


@pytest.mark.long
def test_a_finished_run_can_be_made_longer(trainer, tmp_path):
    whole = steps(trainer(steps=7))
    results = session(trainer(), tmp_path)
    longer = trainer(steps=7)
    assert session(longer, tmp_path, how=RunFolder(results.folder)).lora_path.name == "run_2.safetensors"
    assert_same(longer.state_dict()["adapter"], whole.state_dict()["adapter"])


@pytest.mark.long
def test_what_may_change_does(trainer, tmp_path):
    folder = interrupted(trainer, tmp_path)
    rest = trainer(steps=4, learning_rate=1e-3, optimizer=OptimizerSettings(max_grad_norm=0.5), checkpointing=True)
    session(rest, tmp_path)
    assert rest.history.rates == [2e-3] * 2 + [1e-3] * 2
    assert folder.about()["resumed"][0]["changed"] == {
        "steps": [5, 4], "learning_rate": [2e-3, 1e-3], "optimizer.max_grad_norm": [1.0, 0.5],
        "checkpointing": [False, True],
    }  # fmt: skip
    assert json.loads(folder.job.read_text())["training"]["learning_rate"] == 1e-3


@pytest.mark.long
def test_the_same_step_in_other_batches_may_go_on(trainer, tmp_path):
    interrupted(trainer, tmp_path, batch=2)
    listener = Listener()
    session(trainer(accumulate=2), tmp_path, listener)
    assert listener.of(events.Resumed)


@pytest.mark.long
def test_a_run_goes_on_with_its_own_seed(trainer, tmp_path):
    """ComfyUI draws a new one after each queueing, unless told not to."""
    whole = steps(trainer(seed=5))
    interrupted(trainer, tmp_path, seed=5)
    rest = trainer(seed=6)
    session(rest, tmp_path)
    assert rest.config.seed == 5
    assert_same(rest.state_dict()["adapter"], whole.state_dict()["adapter"])


@pytest.mark.parametrize("changes, words", [
    ({"rank": 3}, "rank was 2 and is 3"), ({"targets": "tiny"}, "targets was 'all' and is 'tiny'"),
    ({"batch": 2}, r"a step had 1 image \(batch 1 x accumulate 1 x 1 process\) and has 2 images \(batch 2 x "),
    ({"optimizer": OptimizerSettings("lion")}, "optimizer.optimizer was 'adamw' and is 'lion'"),
    ({"adapter": AdapterSettings(kind="loha")}, "adapter.kind was 'lora' and is 'loha'"),
])  # fmt: skip
def test_what_may_not_change_is_named(trainer, tmp_path, changes, words):
    interrupted(trainer, tmp_path)
    with pytest.raises(UserError, match=rf"run was interrupted after step 2 and cannot go on, because {words}.*'new'"):
        session(trainer(**changes), tmp_path)


def test_another_data_set_is_named(trainer, model, tmp_path):
    interrupted(trainer, tmp_path)
    with pytest.raises(UserError, match=r"the data set has changed: 1 gone \(robot_05.png\)"):
        session(Trainer(model, *tiny_caches(4), CONFIG), tmp_path)


@pytest.mark.long
def test_a_run_in_progress_is_not_gone_on_with(trainer, tmp_path):
    folder = interrupted(trainer, tmp_path)
    with folder.held():
        assert session(trainer(), tmp_path).folder.name == "run_2"
        with pytest.raises(UserError, match="The run run is being trained right now"):
            session(trainer(), tmp_path, how=folder)


@pytest.mark.long
def test_a_damaged_checkpoint_falls_back_to_the_one_before(trainer, tmp_path):
    whole = steps(trainer())
    folder = interrupted(trainer, tmp_path, 4, checkpoints=CheckpointSettings(every_steps=2))
    before, newest = checkpoints.paths(folder.checkpoints)
    data = bytearray(newest.read_bytes())
    data[-100] ^= 1
    newest.write_bytes(data)
    rest, listener = trainer(), Listener()
    session(rest, tmp_path, listener)
    assert listener.of(events.Resumed)[0].step == 2
    (warned,) = listener.of(events.Warned)
    assert "step_00000004.safetensors of run is damaged (its checksum is wrong)" in warned.text
    assert_same(rest.state_dict()["adapter"], whole.state_dict()["adapter"])
    assert before.name == "step_00000002.safetensors"
    assert newest.with_name(f"{newest.name}.damaged").read_bytes() == data


@pytest.mark.long
def test_a_damaged_checkpoint_is_not_kept_in_place_of_new_ones(trainer, tmp_path):
    """Of the last ones that stay it would be the last."""
    folder = interrupted(trainer, tmp_path, 4, checkpoints=CheckpointSettings(every_steps=2))
    newest = checkpoints.paths(folder.checkpoints)[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    interrupted(trainer, tmp_path, 3, checkpoints=CheckpointSettings(every_steps=1, keep=1))
    assert resume.newest(folder).checkpoint.about.step == 3


def test_a_half_written_checkpoint_does_too(trainer, tmp_path):
    folder = interrupted(trainer, tmp_path, 4, checkpoints=CheckpointSettings(every_steps=2))
    newest = checkpoints.paths(folder.checkpoints)[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    assert resume.newest(folder).checkpoint.about.step == 2


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


def test_losses_that_are_no_numbers_save_before_they_stop(trainer, tmp_path):
    spoiled = trainer(guard=GuardSettings(bad_losses=2))

    def spoil(event):
        if isinstance(event, events.Completed) and event.step == CUT:
            spoiled._draw = lambda batch, draw=spoiled._draw: (draw(batch)[0] * float("nan"), *draw(batch)[1:])

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
            wild._draw = lambda batch, draw=wild._draw: (draw(batch)[0] * 5, *draw(batch)[1:])

    with pytest.raises(UserError, match=r"times its lowest .*: training diverges. Lower the learning rate"):
        session(wild, tmp_path, grow)
    step, folder = wild.step, RunFolder(tmp_path / "runs" / "run")
    assert WINDOW < step < 200
    told = [(type(e), e.step if hasattr(e, "step") else None) for e in listener.told][-4:]
    assert told == [(events.Stepped, step - 1), (events.Completed, step - 1), (events.Checkpointed, step),
                    (events.Saved, None)]  # fmt: skip
    assert listener.told[-1].stopped and listener.told[-1].path.name == f"run_step{step}.safetensors"
    saved = load_file(listener.told[-1].path)
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
    told = [e.text for e in listener.of(events.Warned)]
    again = f" from step {again_from} on" if again_from < 5 else ""
    assert len(told) == 1 and f"while step 5 changed the weights: repeated{again} with all weights resident" in told[0]
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
