"""The queue is a folder: jobs are added, ordered, claimed by one worker alone, and end where their end belongs."""

import itertools
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flux2_train.errors import Paused, UserError
from flux2_train.events import Checkpointed
from flux2_train.runs.queue import folder as queue_folder
from flux2_train.runs.queue import work
from flux2_train.runs.queue.folder import DONE, FAILED, PAUSED, RUNNING, SILENT, STOPPED, WAITING, Queue
from flux2_train.runs.queue.grid import MOST, variations
from flux2_train.settings.base import plain
from flux2_train.settings.dataset_folder import DatasetSettings
from flux2_train.settings.job import Job, Output
from flux2_train.settings.training import TrainingSettings

JOB = Job((DatasetSettings(Path("robot")),), training=TrainingSettings(name="vorn", steps=10))


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "queue")


def titles(queue, *states):
    return [entry.title for entry in queue.entries(*states)]


def test_jobs_wait_in_the_order_in_which_they_were_added(queue):
    assert queue.entries() == []
    for each in ("a", "b", "c"):
        queue.add(JOB, each, "vorn")
    assert titles(queue, WAITING) == ["a", "b", "c"]
    values = queue.entries()[0].values()
    assert values["of"] == "vorn" and values["job"] == json.loads(JOB.to_json())


def test_a_job_writes_to_comfyuis_own_folders_alone(queue):
    queue.add(Job(JOB.dataset, output=Output(loras="/etc", runs="/tmp")), "a")
    assert queue.entries()[0].values()["job"]["output"] == {"loras": "", "runs": ""}


def test_a_job_that_a_file_cannot_hold_whole_is_refused(queue):
    with pytest.raises(UserError, match="not all that was in the graph"):
        queue.add(Job(JOB.dataset, unknown=("another LoRA",)), "a")


@pytest.mark.parametrize("seed", range(8))
def test_any_order_can_be_made(queue, seed):
    for each in "abcde":
        queue.add(JOB, each)
    order = list("abcde")
    for number in range(40):  # so often that numbers between two others run out
        name, place = queue.entries(WAITING)[(number * 7 + seed) % 5], (number * 3 + seed) % 5
        queue.move(name.name, place)
        order.remove(name.title)
        order.insert(place, name.title)
        assert titles(queue, WAITING) == order


def test_moving_to_the_same_gap_again_and_again_loses_nothing(queue):
    for _ in range(4):
        queue.add(JOB, "same")
    for _ in range(20):
        queue.move(queue.entries(WAITING)[-1].name, 1)
        assert len(queue.entries(WAITING)) == 4


def test_of_many_workers_one_gets_each_job(queue):
    for number in range(12):
        queue.add(JOB, f"job {number}")
    with ThreadPoolExecutor(8) as workers:
        claims = [claim for claim in workers.map(lambda _: queue.claim(), range(40)) if claim]
    assert sorted(claim.entry.title for claim in claims) == sorted(f"job {number}" for number in range(12))
    assert len(queue.entries(RUNNING)) == 12 and queue.claim() is None


def test_a_job_ends_where_its_end_belongs(queue):
    for each in ("good", "bad", "given back"):
        queue.add(JOB, each)
    ends = {"good": (DONE, ""), "bad": (FAILED, "the disk is full"), "given back": (WAITING, "")}
    for _ in ends:
        claim = queue.claim()
        claim.end(*ends[claim.entry.title])
    assert {entry.title: entry.state for entry in queue.entries()} == {name: end for name, (end, _) in ends.items()}
    assert queue.find(queue.entries(FAILED)[0].name).values()["why"] == "the disk is full"
    queue.again(queue.entries(FAILED)[0].name)
    assert titles(queue, WAITING) == ["given back", "bad"]


def test_a_silent_workers_job_waits_again_and_it_learns_that(queue):
    queue.add(JOB, "a")
    claim = queue.claim()
    queue.release_abandoned()
    assert titles(queue, RUNNING) == ["a"]
    os.utime(claim.entry.path, (time.time() - SILENT - 5,) * 2)
    other = queue.claim()
    assert other.entry.title == "a" and other.entry.path.exists()
    other.end(DONE)
    claim.beat()
    with pytest.raises(UserError, match="given to another worker"):
        work.require_mine(claim)
    claim.end(FAILED, "late")
    assert [(e.title, e.state) for e in queue.entries()] == [("a", DONE)]


def test_a_job_that_waited_for_days_is_not_taken_for_abandoned(queue):
    queue.add(JOB, "a")
    os.utime(queue.entries()[0].path, (1, 1))
    claim = queue.claim()
    queue.release_abandoned()
    assert claim.entry.path.exists()


def test_the_job_of_an_ended_process_waits_again_at_once(queue, monkeypatch):
    queue.add(JOB, "a")
    gone = 2**22 + 1  # above the largest process id
    monkeypatch.setattr(queue_folder, "own_name", lambda real=queue_folder.own_name: f"{real().split('-')[0]}-{gone}-1")
    queue.claim()
    assert titles(queue, RUNNING) == ["a"]
    queue.release_abandoned()
    assert titles(queue, WAITING) == ["a"]


def test_a_paused_queue_gives_no_job(queue):
    queue.add(JOB, "a")
    queue.pause(True)
    assert queue.paused and queue.claim() is None
    assert queue.claim(queue.entries()[0].name)  # one that is asked for by name
    queue.pause(False)
    assert not queue.paused


def test_the_failure_of_one_does_not_stop_the_rest(queue):
    for each in ("a", "b", "c"):
        queue.add(JOB, each)
    said, trained = [], []

    def train(given, claim):
        trained.append(claim.entry.title)
        assert given == JOB
        if claim.entry.title == "b":
            raise UserError("no memory")

    assert work.work(queue, train, said.append) == (2, 1)
    assert trained == ["a", "b", "c"] and titles(queue, DONE) == ["a", "c"] and titles(queue, FAILED) == ["b"]
    assert "b: failed: no memory" in said


@pytest.mark.parametrize("saved, state", [(True, PAUSED), (False, STOPPED)])
def test_a_paused_job_is_no_failure_and_goes_on_with_its_run(queue, tmp_path, saved, state):
    queue.add(JOB, "a", "another run"), queue.add(JOB, "b")

    def train(given, claim):
        if claim.entry.title == "a":
            if saved:
                work.follow(claim, Checkpointed(7, tmp_path / "vorn_2" / "checkpoints" / "step_00000007.safetensors"))
            raise Paused(7, saved)

    said = []
    assert work.work(queue, train, said.append) == (1, 0)
    assert titles(queue, DONE) == ["b"] and titles(queue, state) == ["a"] and not titles(queue, FAILED)
    (entry,) = queue.entries(state)
    assert entry.why().startswith("paused after step 7; ") and f"a: {entry.why()}" in said
    values = entry.values()
    assert (values["of"], values["goes_on"]) == (("vorn_2", True) if saved else ("another run", False))
    queue.again(entry.name)
    assert titles(queue, WAITING) == ["a"] and queue.entries(WAITING)[0].why() == ""


def test_a_queue_of_an_earlier_version_takes_a_job_that_is_stopped(queue):
    queue.add(JOB, "a")
    for state in (STOPPED, PAUSED):
        queue._place(state).rmdir()
    queue.claim().end(STOPPED, "cancelled")
    assert titles(queue, STOPPED) == ["a"]


def test_an_unreadable_job_fails_alone(queue):
    queue.add(JOB, "a"), queue.add(JOB, "b")
    queue.entries()[0].path.write_text("{")
    assert work.work(queue, lambda given, claim: None, lambda text: None) == (1, 1)


def test_a_worker_that_is_stopped_gives_its_job_back(queue):
    queue.add(JOB, "a")

    def train(given, claim):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.work(queue, train, lambda text: None)
    assert titles(queue, WAITING) == ["a"]


def test_signs_of_life_are_given_while_a_job_runs(queue, monkeypatch):
    monkeypatch.setattr(work, "BEAT", 0.01)
    queue.add(JOB, "a")
    claim = queue.claim()
    os.utime(claim.entry.path, (1, 1))
    with work.signs_of_life(claim):
        deadline = time.monotonic() + 10
        while claim.entry.path.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert claim.entry.path.stat().st_mtime > 2


@pytest.mark.parametrize(
    "title", ["../../x", "", "a/b:c", "x" * 500, "\n\0", "con", "a@1f-2-3", "<img src=x onerror=y>"]
)
def test_any_title_makes_a_file_in_the_queue(queue, title):
    name = queue.add(JOB, title)
    (entry,) = queue.entries()
    assert entry.name == name and entry.path.parent == queue.folder / WAITING and entry.owner == ""
    queue.remove(name)
    assert queue.entries() == []


@pytest.mark.parametrize("name", ["", "../x", "000010 b", "000010 a.json"])
def test_what_is_not_there_is_neither_moved_nor_removed(queue, name):
    queue.add(JOB, "a")
    for change in (queue.remove, queue.again, lambda name: queue.move(name, 0)):
        with pytest.raises(UserError, match="any more"):
            change(name)
    assert titles(queue, WAITING) == ["a"]


def test_a_grid_has_every_combination_under_a_name_of_its_own():
    found = variations(plain(JOB), {"rank": ["8", "16"], "learning_rate": ["1e-4", "2e-4"], "dataset.folder": ["a b"]})
    assert [(job.training.rank, job.training.learning_rate) for _, job in found] == list(
        itertools.product((8, 16), (1e-4, 2e-4))
    )
    assert found[0][0] == "rank 8, learning_rate 1e-4, dataset.folder a b"
    assert found[0][1].training.name == "vorn rank 8 learning_rate 1e-4 folder a b"
    assert {str(job.dataset[0].folder) for _, job in found} == {"a b"}
    assert len({job.training.name for _, job in found}) == 4
    assert variations(plain(JOB), {}) == [("again", JOB)]


@pytest.mark.parametrize("grid, words", [
    ({"rank": ["x"]}, "rank"), ({"nothing": ["1"]}, "nothing"), ({"output.loras": ["/etc"]}, "cannot be varied"),
    ({"name": ["x"]}, "cannot be varied"), ({"rank": []}, "0 jobs"),
    ({"rank": [str(n) for n in range(MOST + 1)]}, "65"),
    ({"unknown": ["[]"]}, "cannot be varied"), ({"dataset.trigger": ["x" * 300]}, "too long"),
    ({"training.name": ["x"]}, "cannot be varied"), ({"training": ['{"name": "x"}']}, "cannot be varied"),
])  # fmt: skip
def test_what_cannot_be_varied_is_refused(grid, words):
    with pytest.raises(UserError, match=words):
        variations(plain(JOB), grid)
