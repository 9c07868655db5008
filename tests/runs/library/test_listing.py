"""The list of runs says what is true, is bounded, and reads a run again only after it has changed."""

import itertools
import json
import os
import sys
import time

import pytest
from made_runs import loss, make_run, write_losses

from flux2_train.runs.folder import RUNNING, STOPPED, RunFolder
from flux2_train.runs.library import listing
from flux2_train.runs.library.curves import losses, rows
from flux2_train.runs.library.listing import BROKEN, KILLED, Listing


def test_a_run_is_listed_as_its_files_say(tmp_path):
    path = make_run(tmp_path, "one", 100, rank=7, learning_rate=2e-4)
    (row,) = Listing(tmp_path).rows()
    assert (row.name, row.state, row.step, row.total, row.lora) == ("one", "finished", 100, 100, "one.safetensors")
    assert (row.began, row.ended) == ("2026-01-02T03:04:05Z", "2026-01-02T03:14:05Z")
    assert row.preview == "step_000100_1.png" and row.checkpoints == (100,)
    expected = {"flavour": "nano", "rank": 7, "learning_rate": 2e-4, "trigger": "zbot", "resolution": 64}
    assert expected.items() <= row.settings.items()
    assert row.size == sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    assert row.curve[0] == pytest.approx(loss(1)) and row.curve[-1] == pytest.approx(loss(100))


def test_the_state_is_what_is_true_now(tmp_path):
    make_run(tmp_path, "stopped", status=STOPPED)
    running, killed = (RunFolder(make_run(tmp_path, name, status=RUNNING)) for name in ("running", "killed"))
    (make_run(tmp_path, "broken") / "run.json").write_text("{")
    known = Listing(tmp_path)
    with running.held():
        assert states(known) == {"stopped": STOPPED, "running": RUNNING, "killed": KILLED, "broken": BROKEN}
        assert known.rows()[0].name == "running"  # before newer ones
    assert states(known)["running"] == KILLED  # nothing in its files has changed
    killed.note(status="finished")
    assert states(known)["killed"] == "finished"
    assert not (tmp_path / "stopped" / ".lock").exists()  # whoever lists takes no locks but of those that run


def states(known):
    return {row.name: row.state for row in known.rows()}


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_what_is_no_run_is_not_listed(tmp_path):
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    make_run(elsewhere, "other")
    make_run(runs, ".hidden")
    (runs / "cache").mkdir()
    (runs / "file").write_text("x")
    (runs / "link").symlink_to(elsewhere / "other")
    assert Listing(runs).rows() == [] and Listing(tmp_path / "nowhere").rows() == []


@pytest.mark.parametrize("text", ["", "[]", "3", '{"status": 3, "step": "x", "total": -1, "began": [1]}',
                                  '{"status": "finished", "step": 1e400}', "[" * 100_000, "\0"])  # fmt: skip
@pytest.mark.parametrize("name", ["run.json", "job.json", "loss.csv"])
def test_files_of_any_content_are_listed_without_an_error(tmp_path, name, text):
    (make_run(tmp_path, "odd") / name).write_text(text)
    (row,) = Listing(tmp_path).rows()
    assert row.name == "odd" and json.dumps(vars(row), allow_nan=False)


def test_a_run_is_read_again_only_after_a_change(tmp_path, monkeypatch):
    path = make_run(tmp_path, "one")
    read, known = [], Listing(tmp_path)
    monkeypatch.setattr(listing, "read_row", lambda folder, real=listing.read_row: read.append(1) or real(folder))
    known.rows(), known.rows()
    assert len(read) == 1
    write_losses(path / "loss.csv", 50)
    os.utime(path / "loss.csv", (time.time() + 5,) * 2)
    assert known.rows()[0].curve[-1] == pytest.approx(loss(50)) and len(read) == 2


@pytest.mark.parametrize("steps", [0, 1, 2, 47, 48, 49, 1000, 20_000])
def test_a_small_curve_runs_from_the_first_to_the_last_step(tmp_path, steps):
    write_losses(tmp_path / "loss.csv", steps)
    found = rows(tmp_path / "loss.csv", 48)
    assert min(steps, 40) <= len(found) <= 48
    numbers = [int(row[0]) for row in found]
    assert numbers == sorted(set(numbers))
    if steps:
        assert numbers[0] == 1 and numbers[-1] == steps
        assert all(row[2] == pytest.approx(loss(int(row[0]))) for row in found)
    gaps = [b - a for a, b in itertools.pairwise(numbers)]
    assert not gaps or max(gaps) <= 3 + 1.5 * steps / 48


def test_500_runs_are_listed_within_two_seconds(tmp_path):
    for number in range(20):
        make_run(tmp_path, f"run_{number}", 200)
    for number in range(20, 500):
        _copy(tmp_path / f"run_{number % 20}", tmp_path / f"run_{number}")
    known = Listing(tmp_path)
    began = time.process_time()
    assert len(known.rows()) == 500
    first = time.process_time() - began
    known.rows()
    assert first < 2 and time.process_time() - began - first < first


def test_a_run_that_trains_is_drawn_from_its_record(tmp_path):
    path = make_run(tmp_path, "one")
    (path / "loss.csv").unlink()
    lines = [
        '{"kind":"phase","text":"x"}',
        '{"kind":"steps","first":1,"loss":[3,2],"smoothed":[3,2.5]}',
        "{",
        '{"kind":"steps","first":2,"loss":[1],"smoothed":[2]}',
        '{"kind":"steps","first":3,"loss":[1]}',
    ]
    (path / "record.jsonl").write_text("\n".join(lines))
    assert losses(RunFolder(path), 48) == [(1, 3, 3), (2, 1, 2)]
    assert Listing(tmp_path).rows()[0].curve == (3, 2)


def _copy(source, target):
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
        else:
            path_there = target / path.name
            path_there.mkdir()
            for inner in path.iterdir():
                (path_there / inner.name).write_bytes(inner.read_bytes())
