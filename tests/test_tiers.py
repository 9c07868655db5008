"""The tiers of the suite: what each leaves out, what it says at its end, and which process runs a file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
FILES = {
    "test_a.py": """
import os, pytest

def test_short(): pass

@pytest.mark.long
def test_long(): pass

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.long(cases=2)
@pytest.mark.parametrize("case", "abcd")
def test_cases(case): print("case", case)

@pytest.fixture
def full_size(request): return request.config.getoption("--all")

def test_of_either_size(full_size): print("full size:", full_size)
""",
    "test_b.py": """
import os

def test_first(): print("process", os.getpid())

def test_second(): print("process", os.getpid())
""",
}

DRAWN = """
import pytest

@pytest.mark.drawn
@pytest.mark.parametrize("one", "abc")
@pytest.mark.parametrize("other", "xyz")
def test_drawn(one, other): print("drawn", one, other)

@pytest.mark.drawn(cases=1)
@pytest.mark.parametrize("one", "def")
def test_one_drawn(one): print("drawn", one)
"""


@pytest.fixture
def run(tmp_path):
    """``run(argument, ...)``: what pytest prints of a small suite that has these tiers."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    long\n    slow\n    drawn\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}

    def pytest_on(*arguments):
        command = [sys.executable, "-m", "pytest", "-p", "tiers", "-rP", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env={**environment, "PYTHONPATH": str(TESTS)}, capture_output=True,
                              text=True)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return pytest_on


@pytest.mark.long
@pytest.mark.parametrize("arguments, line, passed, full_size", [
    (["--quick"], r"scripts/test --quick: 6 tests ran in 0:\d\d in 1 process, 3 left to scripts/test, 1 left to --all, "
                  r"1 shorter than under --all\.", 6, False),
    ([], r"scripts/test: 9 tests ran in 0:\d\d in 1 process, 1 left to --all, 1 shorter than under --all\.", 9, False),
    (["--all"], r"scripts/test --all: 10 tests ran in 0:\d\d in 1 process\.", 10, True),
    (["-n", "2"], r"scripts/test: 9 tests ran in 0:\d\d in 2 processes, 1 left to --all, 1 shorter than under --all\.",
     9, False),
], ids=["quick", "default", "all", "two processes"])  # fmt: skip
def test_each_tier_runs_its_tests_and_says_what_it_left_out(run, arguments, line, passed, full_size):
    printed = run(*arguments)
    assert re.search(f"^{line}$", printed, re.MULTILINE), printed
    assert f"{passed} passed" in printed.splitlines()[-1]
    assert f"full size: {full_size}" in printed


@pytest.mark.long
def test_a_file_is_run_by_one_process(run):
    printed = run("-n", "2")
    assert len(set(re.findall(r"process (\d+)", printed))) == 1


@pytest.mark.long
def test_of_drawn_cases_each_value_is_run_and_under_all_each_case(run, tmp_path):
    def cases(*arguments):
        return re.findall(r"^drawn (\w) ?(\w?)$", run("test_drawn.py", *arguments), re.MULTILINE)

    (tmp_path / "test_drawn.py").write_text(DRAWN)
    drawn, every = cases(), cases("--all")
    pairs, alone = [pair for pair in drawn if pair[1]], [one for one, other in drawn if not other]
    assert {one for one, _ in pairs} == set("abc") and {other for _, other in pairs} == set("xyz")
    assert len(pairs) < 9 and len(alone) == 1 and len(set(every)) == 9 + 3
    assert cases() == drawn
