"""The queue from a terminal: jobs are added, ordered, listed, and trained one after the other."""

import json
import shutil

import pytest

from flux2_train.runs.folder import RunFolder
from flux2_train.runs.queue.folder import Queue

JOB = {
    "model": {"flavour": "nano"}, "dataset": [{"folder": "robot", "resolution": 64}],
    "training": {"name": "terminal queue", "steps": 2, "rank": 2, "validation_items": 0, "preservation": 0.0},
}  # fmt: skip


@pytest.fixture
def queue(typed, tmp_path):
    """``queue(argument, ...)`` types a command on a queue of its own, whose folder is ``queue.folder``."""
    (tmp_path / "job.json").write_text(json.dumps(JOB))

    def run(*arguments):
        return typed("queue", "--queue", tmp_path / "queue", *arguments)

    run.folder, run.job = tmp_path / "queue", tmp_path / "job.json"
    return run


def titles(queue, *states):
    return [entry.title for entry in Queue(queue.folder).entries(*states)]


def test_variations_are_added_moved_and_removed(queue):
    done = queue("add", queue.job, "--vary", "rank=1,2", "--vary", "learning_rate=1e-4,2e-4", "--set", "steps=3")
    names = done.stdout.split("\n")[:-1]
    assert done.returncode == 0 and len(names) == 4
    assert titles(queue)[0] == "rank 1, learning_rate 1e-4"
    assert Queue(queue.folder).entries()[3].values()["job"]["training"]["steps"] == 3
    assert queue("move", names[3], 0).returncode == 0
    assert titles(queue)[0] == "rank 2, learning_rate 2e-4"
    assert queue("remove", names[0]).returncode == 0 and len(titles(queue)) == 3
    listed = queue("list").stdout.split("\n")
    assert listed[0].startswith("waiting") and "rank 2, learning_rate 2e-4" in listed[0]


@pytest.mark.parametrize("arguments, words", [
    (("add", "{job}", "--vary", "rank"), "is not NAME=VALUE"), (("add", "{job}", "--vary", "rank=x"), "rank"),
    (("add", "{job}", "--vary", "name=a,b"), "cannot be varied"), (("add", "nowhere.json"), "There is no file"),
    (("remove", "000010 x"), "any more"), (("move", "000010 x", "0"), "any more"),
])  # fmt: skip
def test_what_is_wrong_is_one_sentence(queue, arguments, words):
    done = queue(*(each.format(job=queue.job) for each in arguments))
    assert done.returncode and words in done.stderr and "Traceback" not in done.stderr
    assert titles(queue) == []


@pytest.mark.long
def test_all_that_waits_is_trained_and_one_failure_stops_nothing(queue, comfy_folders):
    queue("add", queue.job, "--vary", "dataset.folder=nowhere,robot")
    queue("add", queue.job)
    done = queue()
    assert done.returncode == 1 and "1 job has failed" in done.stderr
    assert titles(queue, "done") == ["dataset.folder robot", "terminal queue"]
    assert titles(queue, "failed") == ["dataset.folder nowhere"] and titles(queue, "waiting", "running") == []
    assert "There is no folder" in queue("list").stdout
    runs = comfy_folders / "output" / "flux2_train"
    for name in ("terminal queue folder robot", "terminal queue"):
        assert RunFolder(runs / name).about()["status"] == "finished"
        assert (comfy_folders / "loras" / f"{name}.safetensors").is_file()
        assert "begins in" in (runs / name / "log.txt").read_text()
        shutil.rmtree(runs / name)
