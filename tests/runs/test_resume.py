"""A run that was interrupted and taken up again is the run that was not: same bits, for every part that has a state."""

# ruff: noqa: F401, F811 - pytest finds fixtures by the names that are imported, and gives them as arguments

import json

import pytest
import torch
from resuming import (
    CONFIG,
    CUT,
    EVERY,
    STEPS,
    Listener,
    assert_same,
    caches,
    interrupted,
    model,
    session,
    steps,
    trainer,
)
from safetensors.torch import load_file
from support import brief_flux2, tiny_caches

from flux2_train import events
from flux2_train.errors import UserError
from flux2_train.runs import checkpoints, resume
from flux2_train.runs.folder import FAILED, FINISHED, STOPPED, RunFolder
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.base import choices
from flux2_train.settings.objective import GuardSettings, GuidanceSettings
from flux2_train.settings.optimizer import EmaSettings, OptimizerSettings
from flux2_train.settings.saving import CheckpointSettings, SaveSettings
from flux2_train.settings.timesteps import TimestepSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.train import packing


@pytest.mark.long(cases=8)
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


@pytest.mark.long
def test_queued_again_it_goes_on_by_itself(trainer, tmp_path):
    whole = steps(trainer())
    folder = interrupted(trainer, tmp_path)
    assert folder.about()["status"] == STOPPED and folder.about()["step"] == CUT
    assert folder.about()["why"] == "cancelled"  # an interrupt says nothing itself
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
@pytest.mark.parametrize("change", [{"seed": 1}, {"learning_rate": 1e-3}, {"steps": 4}], ids=lambda c: next(iter(c)))
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
    assert session(longer, tmp_path, how=RunFolder(results.folder)).lora_path.name == "run.safetensors"
    assert_same(longer.state_dict()["adapter"], whole.state_dict()["adapter"])
    assert sorted(p.name for p in (tmp_path / "loras").iterdir()) == ["run.safetensors", "run_step5.safetensors"]


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
        session(new_trainer(model, *tiny_caches(4), CONFIG), tmp_path)


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
