"""Whether the tests notice deliberate breaks: ``python -m bench.breaks``, after scripts/test has run once.

``bench/breaks_table.py`` lists errors as people make them: a sign, a bound, a forgotten restore. Each is made in a copy
of the repository, and the tests that should notice it run there through scripts/test until the first one fails. Before
that the same tests have to pass unbroken, so that a failure means something. ``scripts/test --quick`` only leaves tests
out: what it notices, scripts/test notices too, which is asked about the rest alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.breaks_table import TABLE, Break

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "breaks.json"
FLAGS = {"quick": ["--quick"], "default": [], "all": ["--all"]}
SPOKEN = {"quick": "--quick", "default": "scripts/test", "all": "--all"}
NOT, FAILS = "not noticed", "fails unbroken"
PASSED, FAILED, COLLECTION, NONE, HUNG = 0, 1, 2, 5, -1  # exit codes of pytest, and of a run that had to be ended
LONGEST = 1800  # seconds of one run
OF_TESTS = ("tests/", "scripts/test", "pyproject.toml")  # what says which tests there are and how they run


class Refused(Exception):
    """The table or the surroundings cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class Run:
    """What came of some tests: pytest's exit code, seconds, the first test that failed, the last lines."""

    code: int
    seconds: float
    test: str
    tail: str

    @property
    def failed(self) -> bool:
        """Whether a test has failed; scripts/test itself also ends with 1 where it cannot begin."""
        return self.code in (FAILED, COLLECTION) and bool(self.test)


@dataclass(frozen=True)
class Judged:
    """A break with the tier that noticed it (else NOT or FAILS), the test that failed first, and seconds by tier."""

    change: Break
    by: str
    test: str
    seconds: dict[str, float]


def require_fits(table: Sequence[Break], root: Path = ROOT) -> None:
    """Raise Refused for the first break whose file is not there, or holds its text more than once or not at all."""
    for change in table:
        broken(change, root)


def broken(change: Break, root: Path) -> str:
    """The text of the file with the break in it. Raises Refused unless it fits."""
    path = root / change.file
    count = path.read_text(encoding="utf-8").count(change.text) if path.is_file() else 0
    if count != 1:
        raise Refused(
            f"The break {change.name!r} does not fit: {change.file} holds its text {count} times, once is needed. "
            f"Correct its row in bench/breaks_table.py. The text is {change.text!r}."
        )
    return path.read_text(encoding="utf-8").replace(change.text, change.wrong)


def surroundings(root: Path = ROOT) -> dict[str, str]:
    """The environment of a copy, which has no Python and no ComfyUI of its own: variables name those that it uses.

    Raises Refused if a variable is not set and the checkout has no Python or no ComfyUI to take instead.
    """
    found = dict(os.environ)
    for name, own in (("FLUX2_PYTHON", root / ".venv" / "bin" / "python"), ("COMFYUI_PATH", root / ".comfyui")):
        if not found.get(name) and own.exists():
            found[name] = str(own)
        if not found.get(name):
            raise Refused(f"{name} is not set and {own} is not there; run scripts/test once, or set {name}.")
    return found


def tracked(root: Path) -> list[str]:
    """The names of the files that git tracks and that exist in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True).stdout.decode()
    return [name for name in listed.split("\0") if name and (root / name).is_file()]


@contextmanager
def copied(root: Path, tests_of: Path | None = None) -> Iterator[Path]:
    """Copy the working tree of a checkout into a temporary folder; ``tests_of`` is a checkout whose tests it gets."""
    with tempfile.TemporaryDirectory(prefix="breaks-") as folder:
        for name in tracked(root):
            if tests_of is None or not name.startswith(OF_TESTS):
                _copy(root, name, Path(folder))
        for name in tracked(tests_of) if tests_of else ():
            if name.startswith(OF_TESTS):
                _copy(tests_of, name, Path(folder))
        yield Path(folder)


def _copy(root: Path, name: str, folder: Path) -> None:
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(root / name, target)


def run(folder: Path, tier: str, tests: str, words: str, environment: dict[str, str]) -> Run:
    """Run tests (paths with spaces between) in a copy until the first one fails."""
    options = ["-n", "0", "-x", "-q", "-rfE", *(["-k", words] if words else [])]  # -n 0: in one process
    command = ["scripts/test", *FLAGS[tier], *options, *tests.split()]
    log, started = folder / "breaks.log", time.monotonic()
    with log.open("w") as out:  # a file: a server that a broken test leaves behind would keep a pipe open
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)
        code = _ended(process)
    text = log.read_text(errors="replace")
    first = re.search(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", text, re.MULTILINE)
    tail = "\n".join(text.strip().splitlines()[-15:])
    return Run(code, time.monotonic() - started, first[1] if first else "", tail)


def _ended(process: subprocess.Popen) -> int:
    try:
        return process.wait(LONGEST)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # upon which pytest ends what its fixtures have started
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return HUNG


def unsound(table: Sequence[Break], tier: str, jobs: int, environment: dict[str, str], **of: Path | None) -> set[str]:
    """Those ``tests`` of the table whose chosen ones do not pass in a copy without a break; of one file all at once."""
    words: dict[str, list[str]] = {}
    for change in table:
        words.setdefault(change.tests, []).append(change.words)

    def passes(tests: str) -> bool:
        every = " or ".join(f"({each})" for each in words[tests]) if all(words[tests]) else ""
        with copied(**of) as folder:
            found = run(folder, tier, tests, every, environment)
        sound = found.code in (PASSED, NONE)  # an older checkout may not have the tests of a row
        _tell(f"unbroken, {tests}: {'passes' if sound else found.tail} ({found.seconds:.0f} s)")
        return sound

    with ThreadPoolExecutor(jobs) as pool:
        return {tests for tests, sound in zip(words, pool.map(passes, words), strict=True) if not sound}


def judge(change: Break, tiers: Sequence[str], environment: dict[str, str], **of: Path | None) -> Judged:
    """Make a break in a copy, and ask one tier after the other until one notices it.

    Raises Refused where scripts/test cannot run the tests at all, as when it knows no such tier.
    """
    seconds: dict[str, float] = {}
    with copied(**of) as folder:
        text = broken(change, folder)
        (folder / change.file).write_text(text, encoding="utf-8")
        for tier in tiers:
            found = run(folder, tier, change.tests, change.words, environment)
            seconds[tier] = round(found.seconds, 1)
            if not (found.failed or found.code in (PASSED, NONE, HUNG)):
                raise Refused(f"scripts/test could not run {change.tests} for {change.name}. It said:\n{found.tail}")
            said = f"noticed, {found.test}" if found.failed else NOT
            _tell(f"{change.name}, {SPOKEN[tier]}: {said} ({seconds[tier]} s)")
            if found.failed:
                return Judged(change, tier, found.test, seconds)
    return Judged(change, NOT, "", seconds)


def judge_all(
    table: Sequence[Break], tiers: Sequence[str], jobs: int = 1, root: Path = ROOT, tests_of: Path | None = None
) -> list[Judged]:
    """Every break of the table, in its order. Raises Refused if one of them does not fit."""
    require_fits(table, root)
    environment, of = surroundings(root), {"root": root, "tests_of": tests_of}
    failing = unsound(table, tiers[-1], jobs, environment, **of)
    with ThreadPoolExecutor(jobs) as pool:
        ask = partial(judge, tiers=tiers, environment=environment, **of)
        sound = iter(pool.map(ask, [change for change in table if change.tests not in failing]))
        return [Judged(each, FAILS, "", {}) if each.tests in failing else next(sound) for each in table]


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def summary(judged: Sequence[Judged], tiers: Sequence[str]) -> str:
    """The last line: how many were noticed, by which tier, and which were not."""
    counts = {tier: sum(each.by == tier for each in judged) for tier in tiers}
    more = ", ".join(f"{counts[tier]} {'more ' * (tier != tiers[0])}by {SPOKEN[tier]}" for tier in tiers)
    missed = [each.change.name for each in judged if each.by not in tiers]
    others = f"; not: {', '.join(missed)}" if missed else ""
    return f"{sum(counts.values())} of {len(judged)} breaks noticed: {more}{others}"


def table_of(judged: Sequence[Judged]) -> str:
    """A line per break: its name, what noticed it, the first test that failed."""
    wide = max(len(each.change.name) for each in judged)
    return "\n".join(f"{e.change.name:{wide}}  {SPOKEN.get(e.by, e.by):14}  {e.test}".rstrip() for e in judged)


def as_json(judged: Sequence[Judged], tiers: Sequence[str]) -> str:
    """The judged breaks as JSON, with the machine on which they were judged."""
    rows = [
        {"break": e.change.name, "file": e.change.file, "noticed by": SPOKEN.get(e.by, e.by), "test": e.test,
         "seconds": {SPOKEN[tier]: taken for tier, taken in e.seconds.items()}}
        for e in judged
    ]  # fmt: skip
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    return json.dumps({"machine": machine, "summary": summary(judged, tiers), "breaks": rows}, indent=1) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="python -m bench.breaks", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    root.add_argument("--tier", choices=FLAGS, help="ask this tier alone (default: quick, then default)")
    root.add_argument("--only", nargs="+", metavar="NAME", help="these breaks alone")
    root.add_argument("--jobs", type=int, default=1, help="runs side by side (default: %(default)s)")
    root.add_argument("--tests-of", type=Path, metavar="FOLDER", help="the tests of another checkout, such as an "
                      "older one; then --tier is default unless it is given")  # fmt: skip
    root.add_argument("--at-least", type=int, default=0, metavar="N", help="exit with 1 if fewer are noticed")
    root.add_argument("--at-least-quick", type=int, default=0, metavar="N", help="and if --quick notices fewer")
    root.add_argument("--output", type=Path, help="write the result into this JSON file (default: "
                      "bench/results/breaks.json for the whole table with its own tests)")  # fmt: skip
    return root


def chosen(names: Sequence[str] | None) -> tuple[Break, ...]:
    """The rows of these names, all without any. Raises Refused for an unknown one."""
    unknown = set(names or ()) - {change.name for change in TABLE}
    if unknown:
        known = ", ".join(change.name for change in TABLE)
        raise Refused(f"There is no break {', '.join(sorted(unknown))}; there are {known}.")
    return tuple(change for change in TABLE if not names or change.name in names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the breaks, print and write the result. Returns the exit code: 2 for what cannot be done."""
    asked = parser().parse_args(arguments)
    tiers = (asked.tier,) if asked.tier else ("default",) if asked.tests_of else ("quick", "default")
    try:
        judged = judge_all(chosen(asked.only), tiers, asked.jobs, tests_of=asked.tests_of and asked.tests_of.resolve())
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    output = asked.output or (None if asked.only or asked.tests_of else RESULTS)
    if output:
        output.write_text(as_json(judged, tiers), encoding="utf-8")
    print(f"{table_of(judged)}\n{summary(judged, tiers)}")
    quick = sum(each.by == "quick" for each in judged)
    return int(sum(each.by in tiers for each in judged) < asked.at_least or quick < asked.at_least_quick)


if __name__ == "__main__":
    sys.exit(main())
