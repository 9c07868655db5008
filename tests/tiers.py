"""The three tiers of the suite, how its files are shared among processes, and the report at its end.

``scripts/test --quick`` leaves out tests marked ``long`` or ``slow``, ``scripts/test`` those marked ``slow``, and
``scripts/test --all`` runs everything and gives the fixture ``full_size`` as True. Of a test with many cases that is
marked ``long(cases=3)``, ``--quick`` runs three. Of one that is marked ``drawn``, ``scripts/test`` runs so many cases
that each value of each of its parameters is in one of them, or as many as ``drawn(cases=3)`` says; chance draws them,
the same ones each time, others with ``FLUX2_TEST_SEED``.
"""

from __future__ import annotations

import gc
import os
import random
import time
from collections import Counter, defaultdict

import pytest
from xdist.scheduler import LoadScopeScheduling

SECONDS = 10  # a test that takes longer without --all is named at the end
# One process runs all files of a group, one after the other, so that they share its server.
SERVER = (
    "test_server", "test_server_refusals", "test_server_files", "test_server_queue", "test_server_processes",
    "test_templates", "test_search", "test_earlier_graphs", "test_scripts", "test_workflows",
)  # fmt: skip
BROWSER = (
    "test_browser", "test_browser_shown", "test_browser_locales", "test_browser_pictures", "test_browser_runs",
    "test_panel", "test_panel_page", "test_panel_speed",
)  # fmt: skip
GROUPS = dict.fromkeys(SERVER, "server") | dict.fromkeys(BROWSER, "browser")
# Files whose tests share nothing: any process may take any of them.
SPLIT = {"test_other_device", "test_bootstrap"}
# The files that take longest, in this order: they start first, so that the processes end at nearly the same time.
FIRST = (
    *SERVER, *BROWSER, "test_other_device", "test_load_memory", "test_server_runs", "test_memory", "test_retry",
    "test_judging", "test_processes_resume", "test_terminal_runs", "test_evaluation_processes", "test_pairs",
    "test_speed_bench", "test_learning_bench", "test_gpu_bench", "test_store", "test_previews_memory",
    "test_checkpoint_runs", "test_terminal", "test_resume", "test_reference", "test_neighbour",
)  # fmt: skip


def pytest_addoption(parser) -> None:
    group = parser.getgroup("tiers")
    group.addoption("--quick", action="store_true", help="leave out tests marked long or slow")
    group.addoption("--all", action="store_true", help="run everything, long tests at full size")
    group.addoption("--screenshots", action="store_true", help="keep what tests in the browser see, as --all does")


def pytest_configure(config) -> None:
    config.pluginmanager.register(Summary(config))
    if config.getoption("--screenshots") or config.getoption("--all"):
        os.environ["FLUX2_TEST_SCREENSHOTS"] = "1"  # which browsing.py reads


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log) -> LoadScopeScheduling:
    config.option.loadscopereorder = False  # by default the files with the most tests come first, not the longest
    return ByFile(config, log)


def tier_of(config) -> str:
    return "--all" if config.getoption("--all") else "--quick" if config.getoption("--quick") else ""


def pytest_collection_modifyitems(config, items: list) -> None:
    """Take out of ``items`` what the tier leaves to a larger one, count it, and put the longest files first."""
    tier, left = tier_of(config), Counter()
    kept, dropped = [], []
    quick, undrawn = _quick_cases(items), _undrawn_cases(items)
    for item in items:
        needs = "--quick" if item in quick else "--all" if item in undrawn else _needed(item)
        if (needs == "--all" and tier != "--all") or (needs == "" and tier == "--quick"):
            left["scripts/test" if needs == "" else "--all"] += 1
            dropped.append(item)
        else:
            kept.append(item)
            if tier != "--all" and "full_size" in item.fixturenames:
                left["full size"] += 1
    places = {name: number for number, name in enumerate(FIRST)}
    kept.sort(key=lambda item: places.get(item.path.stem, len(places)))  # stable: the order within a file stays
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)
    config.stash[LEFT] = left


def pytest_collection_finish(session) -> None:
    """Keep the garbage collector away from what lives to the end: modules, and thousands of collected tests.

    Each run of the trainer collects garbage a few times, which would take a second of each short run.
    """
    gc.collect()
    gc.freeze()


LEFT = pytest.StashKey[Counter]()


def _needed(item) -> str:
    """The smallest tier that runs a test: ``--quick``, the empty one, or ``--all``."""
    if item.get_closest_marker("slow"):
        return "--all"
    return "" if item.get_closest_marker("long") else "--quick"


def _quick_cases(items: list) -> set:
    """The cases that ``--quick`` runs of tests marked ``long(cases=3)``: so many of each, evenly spread."""
    tests = _cases_of_tests(items, "long").items()
    return {all_of[i] for (*_, cases), all_of in tests if cases for i in _spread(len(all_of), cases)}


def _undrawn_cases(items: list) -> set:
    """The cases of tests marked ``drawn`` that ``--all`` alone runs."""
    tests, seed = _cases_of_tests(items, "drawn").items(), os.environ.get("FLUX2_TEST_SEED", "0")
    return {
        item for (path, name, cases), all_of in tests
        for item in set(all_of) - _draw(all_of, cases, random.Random(f"{seed} {path.stem} {name}"))
    }  # fmt: skip


def _cases_of_tests(items: list, mark_name: str) -> dict[tuple, list]:
    """The cases of each marked test by its file, its name and the mark's ``cases``, without those marked ``slow``."""
    tests = defaultdict(list)
    for item in items:
        mark = item.get_closest_marker(mark_name)
        if mark and not item.get_closest_marker("slow"):
            tests[item.path, item.originalname, mark.kwargs.get("cases")].append(item)
    return tests


def _draw(cases: list, count: int | None, chance: random.Random) -> set:
    """``count`` cases, or so many that each value of each parameter is in one of them."""
    order, seen, found = chance.sample(cases, len(cases)), set(), set()
    for case in order:
        values = {(name, id(value)) for name, value in case.callspec.params.items()}
        if len(found) < count if count else values - seen:
            found.add(case)
            seen |= values
    return found


def _spread(length: int, count: int) -> set[int]:
    """``count`` places from 0 to ``length - 1`` at nearly equal distances."""
    return {round(n * (length - 1) / max(count - 1, 1)) for n in range(min(count, length))}


class ByFile(LoadScopeScheduling):
    """Gives each process whole files, in the order of the collection, and the files of a group to one of them."""

    def _split_scope(self, nodeid: str) -> str:
        stem = nodeid.split("::")[0].rpartition("/")[2].removesuffix(".py")
        return nodeid if stem in SPLIT else GROUPS.get(stem, stem)


class Summary:
    """Prints one line about the tier at the end, and the tests that took long."""

    def __init__(self, config):
        self.config, self.began, self.left = config, time.monotonic(), Counter()
        self.seconds, self.tests = Counter(), set()

    def pytest_runtest_logreport(self, report) -> None:
        self.tests.add(report.nodeid)
        self.seconds[report.nodeid, report.when] += report.duration

    def pytest_sessionfinish(self, session) -> None:
        self.left += self.config.stash.get(LEFT, Counter())
        if hasattr(self.config, "workeroutput"):  # a process of several: the first one adds it up
            self.config.workeroutput["left"] = dict(self.left)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error) -> None:
        self.left = Counter(getattr(node, "workeroutput", {}).get("left", {}))  # each of them has collected everything

    def pytest_terminal_summary(self, terminalreporter) -> None:
        if not self.tests:
            return
        if tier_of(self.config) != "--all":
            for (name, when), seconds in self.seconds.most_common():
                if seconds > SECONDS:
                    terminalreporter.write_line(f"over {SECONDS} s: {seconds:.0f} s {when} of {name}")
        terminalreporter.write_line(self.line())

    def line(self) -> str:
        minutes, seconds = divmod(round(time.monotonic() - self.began), 60)
        processes = self.config.getoption("numprocesses", None) or 1
        places = f"{processes} processes" if processes > 1 else "1 process"
        ran = f"{len(self.tests)} tests ran in {minutes}:{seconds:02d} in {places}"
        left = [
            f"{self.left['scripts/test']} left to scripts/test" if self.left["scripts/test"] else "",
            f"{self.left['--all']} left to --all" if self.left["--all"] else "",
            f"{self.left['full size']} shorter than under --all" if self.left["full size"] else "",
        ]
        return ", ".join([f"scripts/test {tier_of(self.config)}".strip() + f": {ran}", *filter(None, left)]) + "."
