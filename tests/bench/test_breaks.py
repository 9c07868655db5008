"""The program that breaks the code on purpose: its table fits the code, and it knows what was noticed."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import breaks
from bench.breaks_table import TABLE, Break

ROOT = Path(__file__).resolve().parents[2]
CODE = """
def double(x):
    return x + x

def third(x):
    return x / 3

def less(x):
    return x - 1
"""
TESTS = """
import pytest
from code_of_mine import double, third

def test_double():
    assert double(3) == 6

@pytest.mark.long
def test_third():
    assert third(2) > 0.6
"""
QUICK = """#!/usr/bin/env bash
if [ "$1" = --quick ]; then shift; set -- -m "not long" "$@"; fi
exec "$FLUX2_PYTHON" -m pytest -p no:cacheprovider "$@"
"""
FILES = {
    "code_of_mine.py": CODE, "tests/test_mine.py": TESTS, "scripts/test": QUICK,
    "tests/test_fails.py": "def test_fails():\n    assert False\n",
    "pyproject.toml": '[tool.pytest.ini_options]\nmarkers = ["long: takes a while"]\n',
}  # fmt: skip
MINE = [
    Break("doubling", "code_of_mine.py", "x + x", "x - x", "tests/test_mine.py", "double"),
    Break("thirds", "code_of_mine.py", "x / 3", "x // 3", "tests/test_mine.py", "third"),
    Break("unseen", "code_of_mine.py", "x - 1", "x - 2", "tests/test_mine.py", "double or third"),
    Break("of a test that fails", "code_of_mine.py", "x - 1", "x - 2", "tests/test_fails.py"),
]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small repository with code, tests and scripts/test of its own."""
    if shutil.which("git") is None:
        pytest.skip("git is missing")
    monkeypatch.setenv("FLUX2_PYTHON", sys.executable)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "scripts" / "test").chmod(0o755)
    for command in (["git", "init", "-q"], ["git", "add", "."]):
        subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "notes.txt").write_text("not tracked")
    return tmp_path


def test_the_table_fits_the_code():
    breaks.require_fits(TABLE)
    assert len({change.name for change in TABLE}) == len(TABLE) >= 34
    for change in TABLE:
        assert change.text != change.wrong and all((ROOT / test).is_file() for test in change.tests.split())
        if change.file.endswith(".py"):  # an error that Python itself names proves nothing about the tests
            compile(breaks.broken(change, ROOT), change.file, "exec")


@pytest.mark.long
def test_a_break_is_noticed_by_the_first_tier_whose_tests_fail(repository):
    tiers = ("quick", "default")
    judged = breaks.judge_all(MINE, tiers, jobs=2, root=repository)
    assert [each.by for each in judged] == ["quick", "default", breaks.NOT, breaks.FAILS]
    assert [each.test.rpartition("::")[2] for each in judged] == ["test_double", "test_third", "", ""]
    assert [list(each.seconds) for each in judged] == [["quick"], ["quick", "default"], ["quick", "default"], []]
    assert breaks.summary(judged, tiers) == (
        "2 of 4 breaks noticed: 1 by --quick, 1 more by scripts/test; not: unseen, of a test that fails"
    )
    assert breaks.table_of(judged).splitlines()[0].split() == ["doubling", "--quick", "tests/test_mine.py::test_double"]
    assert (repository / "code_of_mine.py").read_text() == CODE


def test_a_copy_has_what_is_tracked_with_another_checkouts_tests_if_asked(repository, tmp_path_factory):
    with breaks.copied(repository) as folder:
        assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == set(FILES)
    other = shutil.copytree(repository, tmp_path_factory.mktemp("other") / "checkout")
    for name in FILES:
        (other / name).write_text("old")
    with breaks.copied(repository, other) as folder:
        assert {name for name in FILES if (folder / name).read_text() == "old"} == set(FILES) - {"code_of_mine.py"}


@pytest.mark.parametrize("change, count", [({"text": "x"}, "7 times"), ({"file": "gone.py"}, "0 times")])
def test_a_row_that_does_not_fit_is_refused_by_name(repository, change, count):
    with pytest.raises(breaks.Refused, match=rf"break 'doubling' does not fit: .* {count}, once is needed"):
        breaks.judge_all([replace(MINE[0], **change)], ("quick",), root=repository)


def test_what_cannot_be_done_is_one_line(repository, capsys, monkeypatch):
    assert breaks.main(["--only", "velocity-sign", "velocity"]) == 2
    assert capsys.readouterr().err.startswith("error: There is no break velocity; there are velocity-sign, ")
    monkeypatch.delenv("FLUX2_PYTHON")
    with pytest.raises(breaks.Refused, match="FLUX2_PYTHON is not set and .* run scripts/test once"):
        breaks.surroundings(repository)


@pytest.mark.long
def test_tests_that_cannot_run_are_told_and_notice_nothing(repository):
    gone = replace(MINE[0], tests="tests/test_gone.py")
    with pytest.raises(breaks.Refused, match=r"could not run tests/test_gone.py for doubling(.|\n)*not found"):
        breaks.judge(gone, ["quick"], breaks.surroundings(repository), root=repository)
