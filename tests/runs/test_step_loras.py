"""LoRA files on the way: when they are written, what they hold, which ones go, and that the run is the same."""

from dataclasses import replace

import pytest
import torch
from support import brief_flux2, tiny_caches
from test_checkpoint_runs import no_room

from flux2_train import events
from flux2_train.adapters import read
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.session import train
from flux2_train.settings.optimizer import EmaSettings, OptimizerSettings
from flux2_train.settings.saving import CheckpointSettings, SaveSettings
from flux2_train.settings.training import TrainingSettings

CONFIG = TrainingSettings(
    name="run", steps=6, rank=2, learning_rate=2e-3, validation_items=0, checkpointing=False,
    save=SaveSettings(precision="fp32", certificate=False),
)  # fmt: skip
EVERY_TWO = CheckpointSettings(every_minutes=0, lora_every=2)


@pytest.fixture(scope="module")
def parts():
    return brief_flux2(), *tiny_caches()


def session(parts, place, listen=lambda event: None, how="new", **changes):
    trainer = new_trainer(*parts, replace(CONFIG, **changes))
    with torch.inference_mode():
        return train(trainer, place / "loras", place / "runs", listen, how)


def names(place):
    return sorted(path.name for path in (place / "loras").iterdir())


def same(one, other):
    one, other = read.load(one), read.load(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.long
@pytest.mark.parametrize("change", [
    {}, {"ema": EmaSettings(0.5)}, {"optimizer": OptimizerSettings("schedulefree")},
], ids=["last weights", "mean", "schedule-free"])  # fmt: skip
def test_a_file_is_the_lora_of_a_run_of_so_many_steps(parts, tmp_path, change):
    session(parts, tmp_path, checkpoints=EVERY_TWO, **change)
    assert names(tmp_path) == ["run.safetensors", "run_step2.safetensors", "run_step4.safetensors"]
    shorter = session(parts, tmp_path / "shorter", steps=2, **change)
    assert same(tmp_path / "loras" / "run_step2.safetensors", shorter.lora_path)
    without = session(parts, tmp_path / "without", **change)
    assert names(tmp_path / "without") == ["run.safetensors"]
    assert same(tmp_path / "loras" / "run.safetensors", without.lora_path)  # saving changes nothing


@pytest.mark.long
def test_the_oldest_of_the_runs_own_files_go(parts, tmp_path):
    foreign = tmp_path / "loras" / "run_step2.safetensors"
    foreign.parent.mkdir()
    foreign.write_text("somebody else's")
    results = session(parts, tmp_path, checkpoints=replace(EVERY_TWO, lora_every=1, lora_keep=2))
    assert names(tmp_path) == [
        "run.safetensors", "run_step2.safetensors", "run_step4.safetensors", "run_step5.safetensors",
    ]  # fmt: skip
    assert foreign.read_text() == "somebody else's"
    noted = {"4": "run_step4.safetensors", "5": "run_step5.safetensors"}
    assert RunFolder(results.folder).about()["step_loras"] == noted


@pytest.mark.long
def test_zero_keeps_all_and_a_taken_name_gets_a_number(parts, tmp_path):
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "run_step2.safetensors").write_text("somebody else's")
    session(parts, tmp_path, checkpoints=replace(EVERY_TWO, lora_keep=0))
    assert names(tmp_path) == [
        "run.safetensors", "run_step2.safetensors", "run_step2_2.safetensors", "run_step4.safetensors",
    ]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("form", ["peft", "kohya"])
def test_they_have_the_format_of_the_last_one(parts, tmp_path, form):
    saved = session(
        parts, tmp_path, save=replace(CONFIG.save, format=form), checkpoints=replace(EVERY_TWO, lora_keep=1)
    )
    kinds = {path.name: path.is_dir() for path in (tmp_path / "loras").iterdir()}
    last, step = ("run", "run_step4") if form == "peft" else ("run.safetensors", "run_step4.safetensors")
    assert kinds == {last: form == "peft", step: form == "peft"}
    step_file = (
        saved.lora_path.parent.parent / step / saved.lora_path.name if form == "peft" else tmp_path / "loras" / step
    )
    assert read.load(step_file).keys() == read.load(saved.lora_path).keys()


@pytest.mark.long
def test_a_run_that_goes_on_goes_on_with_its_files(parts, tmp_path):
    """Cut after step 5 with a checkpoint of step 3: the file of step 4 is written anew, not a second time."""
    asked = {"checkpoints": replace(EVERY_TWO, lora_every=2, lora_keep=2, every_steps=3, keep=9), "steps": 8}

    def cut(event):
        if isinstance(event, events.Completed) and event.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session(parts, tmp_path, cut, **asked)
    (last,) = (tmp_path / "runs").rglob("step_00000005.safetensors")
    last.unlink()
    results = session(parts, tmp_path, how="auto", **asked)
    assert names(tmp_path) == ["run.safetensors", "run_step4.safetensors", "run_step6.safetensors"]
    whole = session(parts, tmp_path / "whole", **asked)
    assert same(results.lora_path, whole.lora_path)
    for name in ("run_step4.safetensors", "run_step6.safetensors"):
        assert same(tmp_path / "loras" / name, tmp_path / "whole" / "loras" / name)


@pytest.mark.long
def test_a_full_disk_is_told_once_and_training_goes_on(parts, tmp_path):
    received, room = [], no_room(10_000)

    def listen(event):
        received.append(event)
        if isinstance(event, events.Stepped) and event.step == 1:
            room.__enter__()
        if isinstance(event, events.Stepped) and event.step == 5:
            room.__exit__(None, None, None)

    checkpoints = replace(EVERY_TWO, keep=0, lora_every=1)
    session(parts, tmp_path, listen, checkpoints=checkpoints)
    told = [e.text for e in received if isinstance(e, events.Warned)]
    assert sum(text.startswith("A LoRA file on the way could not be written") for text in told) == 1, told
    assert names(tmp_path) == ["run.safetensors", "run_step5.safetensors"]


@pytest.mark.long
@pytest.mark.parametrize("record", [["run.safetensors"], {"4": "../x.safetensors", "x": "run.safetensors", "6": 7}])
def test_what_somebody_else_wrote_into_the_record_removes_nothing(parts, tmp_path, record):
    (tmp_path / "x.safetensors").write_text("outside")

    def listen(event):
        if isinstance(event, events.Started):
            RunFolder(event.folder).note(step_loras=record)

    session(parts, tmp_path, listen, checkpoints=replace(EVERY_TWO, lora_every=1, lora_keep=1))
    assert (tmp_path / "x.safetensors").is_file() and (tmp_path / "loras" / "run.safetensors").is_file()
