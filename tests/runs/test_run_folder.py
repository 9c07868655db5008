"""A run's folder is there from the start, holds its job, and belongs to one run only."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from children import killed_while_writing
from support import brief_flux2, tiny_caches

from flux2_train.errors import UserError
from flux2_train.events import Started
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.session import train
from flux2_train.settings import job
from flux2_train.settings.training import TrainingSettings

CONFIG = TrainingSettings(name="run", steps=2, rank=2, validation_items=0)


class Stop(Exception):
    """What a listener raises."""


def trainer(**changes):
    return new_trainer(brief_flux2(), *tiny_caches(2), TrainingSettings(**{**vars(CONFIG), **changes}))


def test_the_folder_and_its_job_are_there_before_the_first_step(tmp_path):
    def listen(event):
        assert isinstance(event, Started)
        assert (event.folder / "run.json").is_file()
        assert job.load(event.folder / "job.json").training == CONFIG
        raise Stop

    with torch.inference_mode(), pytest.raises(Stop):
        train(trainer(), tmp_path / "loras", tmp_path / "runs", listen)
    assert not (tmp_path / "loras").exists()


def test_folder_and_lora_have_one_name(tmp_path):
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "run.safetensors").touch()
    (tmp_path / "runs" / "run_2").mkdir(parents=True)
    with torch.inference_mode():
        results = train(trainer(), tmp_path / "loras", tmp_path / "runs", lambda event: None)
    assert (results.folder.name, results.lora_path.name) == ("run_3", "run_3.safetensors")
    files = {p.name for p in results.folder.iterdir()} - {".lock"}
    assert files == {"job.json", "run.json", "dataset.json", "plan.txt", "loss.csv", "loss.png", "report.json",
                     "log.txt", "record.jsonl", "checkpoints"}  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_the_next_run_removes_what_a_killed_one_left_half_written(tmp_path):
    run = RunFolder(tmp_path / "runs" / "old")
    for folder in (tmp_path / "loras", run.path, run.checkpoints, run.previews, run.images, run.references):
        folder.mkdir(parents=True)
        killed_while_writing(folder / "a_file")
    assert len(list(tmp_path.rglob("*.partial"))) == 6
    with torch.inference_mode():
        train(trainer(), tmp_path / "loras", tmp_path / "runs", lambda event: None)
    assert not list(tmp_path.rglob("*.partial"))


def test_runs_that_begin_at_once_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: RunFolder.create(tmp_path, "run").name, range(32)))
    assert sorted(made) == sorted(["run", *(f"run_{n}" for n in range(2, 33))])


@pytest.mark.parametrize("kind", ["a file", "a link to nowhere"])
def test_a_folder_for_runs_that_is_none_is_told(tmp_path, kind):
    """Such as a link to a disk that is not there today."""
    runs = tmp_path / "runs"
    runs.write_text("in the way") if kind == "a file" else runs.symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"The run's folder cannot be made in .*runs \(File exists\); make that a"):
        RunFolder.create(runs, "run")


def test_the_last_run_of_a_name_has_the_highest_number(tmp_path):
    for _ in range(11):
        RunFolder.create(tmp_path, "run").note(name="run")
    RunFolder.create(tmp_path, "run_99").note(name="run_99")  # the first of another name
    assert RunFolder.last(tmp_path, "run").name == "run_11"


def test_a_run_that_is_taken_up_does_not_end_because_of_an_old_request(tmp_path):
    folder = RunFolder.create(tmp_path, "run")
    with folder.held():
        folder.ask_to_stop()
        assert folder.stop.exists()
    with folder.held():
        assert not folder.stop.exists()
