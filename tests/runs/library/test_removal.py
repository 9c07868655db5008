"""A run is removed whole, alone, and never while it is being trained; two runs' settings are compared in words."""

import json
import sys

import pytest
from made_runs import make_run

from flux2_train.errors import UserError
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.library.differences import differences, sentence
from flux2_train.runs.library.listing import Listing, job_values
from flux2_train.runs.library.removal import remove_run


def test_a_run_is_removed_and_its_neighbours_stay(tmp_path):
    make_run(tmp_path, "one"), make_run(tmp_path, "one_2")
    remove_run(tmp_path, "one")
    assert [row.name for row in Listing(tmp_path).rows()] == ["one_2"] and not (tmp_path / "one").exists()


def test_a_run_that_is_trained_is_not_removed(tmp_path):
    path = make_run(tmp_path, "one")
    before = sorted(path.rglob("*"))
    with RunFolder(path).held(), pytest.raises(UserError, match="being trained right now"):
        remove_run(tmp_path, "one")
    assert [p for p in sorted(path.rglob("*")) if p.name != ".lock"] == before
    remove_run(tmp_path, "one")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_links_are_removed_and_not_followed(tmp_path):
    runs, kept = tmp_path / "runs", tmp_path / "kept"
    path = make_run(runs, "one")
    make_run(kept, "other")
    (path / "link").symlink_to(kept)
    (path / "previews" / "link").symlink_to(kept / "other")
    (path / "file").symlink_to(kept / "other" / "run.json")
    (runs / "linked").symlink_to(kept / "other")
    before = sorted(kept.rglob("*"))
    with pytest.raises(UserError, match="no run's name"):
        remove_run(runs, "linked")
    remove_run(runs, "one")
    assert sorted(kept.rglob("*")) == before and not path.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../runs/one", "one/previews", "a\\b", "/", ".hidden", "one\0",
                                  "x" * 300, "con", "one/", "one/.", "C:one"])  # fmt: skip
def test_what_is_no_runs_name_is_refused(tmp_path, name):
    runs = tmp_path / "runs"
    make_run(runs, "one"), make_run(runs, ".hidden")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError):
        remove_run(runs, name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "cache").mkdir()
    with pytest.raises(UserError, match="There is no run cache"):
        remove_run(tmp_path, "cache")
    with pytest.raises(UserError, match="There is no run nowhere"):
        remove_run(tmp_path, "nowhere")


def test_what_differs_is_said_in_words(tmp_path):
    one = job_values(RunFolder(make_run(tmp_path, "one", 100, rank=16)))
    other = job_values(RunFolder(make_run(tmp_path, "other", 200, rank=32, learning_rate=2e-4)))
    found = dict((name, (a, b)) for name, a, b in differences(one, other))
    assert found["rank"] == ("16", "32") and found["steps"] == ("100", "200")
    assert found["learning_rate"][1] == "0.0002" and "name" not in found
    assert differences(one, json.loads(json.dumps(one))) == []
    assert sentence([]) == "nothing differs" and sentence([("rank", "16", "32")]) == "rank 16 / 32"


def test_data_sets_are_compared_one_by_one(tmp_path):
    one = job_values(RunFolder(make_run(tmp_path, "one")))
    other = {**one, "dataset": [{**one["dataset"][0], "folder": "style"}]}
    assert differences(one, other) == [("folder", "robot", "style")]
    two = {**one, "dataset": [one["dataset"][0], {**one["dataset"][0], "folder": "style"}]}
    assert ("dataset.2.folder", "none", "style") in differences(one, two)
    assert all(isinstance(part, str) for row in differences({}, {"x": [1], "training": 3}) for part in row)
