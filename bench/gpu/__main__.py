"""The command line, and the process that watches the one that measures: see ``bench.gpu``."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.gpu import packed  # noqa: E402
from bench.gpu.process import Lost, Process  # noqa: E402
from bench.gpu.results import Results, shown  # noqa: E402
from bench.gpu.rows import PATIENCE, Row, chosen, rows, unknown  # noqa: E402
from flux2_train.errors import UserError  # noqa: E402

FIRST = 300.0  # seconds that torch and ComfyUI may take to start
LEAST = 5.0  # seconds; if fewer are left, no further row starts
NOTHING, INTERRUPTED = 2, 130  # exit codes


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m bench.gpu", description="Measure what is claimed about this card.")
    made.add_argument("--device", choices=("auto", "cpu"), default="auto", help="cpu: a dry run on nano")
    made.add_argument("--minutes", type=_minutes, default=9.0, help="no row is begun after that (default: 9)")
    made.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="only these; klein-9b* names several")
    made.add_argument("--list", action="store_true", help="print the names of all rows")
    made.add_argument("--comfyui", default="", metavar="OPTIONS", help="ComfyUI's own options, as one text")
    made.add_argument("--out", type=Path, help="default: bench/results/gpu_CARD.json")
    made.add_argument("--pack", type=Path, metavar="DIR", help="make a folder for a machine without internet")
    made.add_argument("--python", default="3.12", metavar="VERSION", help="of that machine (default: 3.12)")
    return made


def _minutes(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of minutes; give one above 0.")
    return found


def main(arguments: list[str]) -> int:
    """Run the command.

    Returns 0 if every row that it began went well, 1 if one failed, 2 if it measured nothing, 130 if somebody ended it.
    """
    options = parser().parse_args(arguments)
    if options.list:
        print("\n".join(row.name for row in rows(options.device)))
        return 0
    try:
        if options.pack:
            from bench.gpu.pack import pack

            print(pack(options.pack, options.python))
            return 0
        _check([*rows("cpu"), *rows("cuda")], options.rows)
        packed.unpack(ROOT)
        return Bench(options).run()
    except (UserError, Lost, OSError) as error:
        print(error if isinstance(error, UserError) else f"Nothing could be measured: {error}", file=sys.stderr)
        return NOTHING


def _check(every: list[Row], patterns: list[str]) -> None:
    """Raise UserError for a pattern that no row's name fits."""
    if wrong := unknown(every, patterns):
        raise UserError(f"No row is called {' or '.join(wrong)}; --list prints their names.")


class Bench:
    """One run of the command: the time that is left, the process that measures, and what that process answers."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.end = options, time.monotonic() + 60 * options.minutes
        self.process: Process | None = None
        self.results: Results | None = None

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def run(self) -> int:
        """See ``main``. Raises Lost or OSError if nothing could be measured."""
        try:
            code = self._measure()
        except KeyboardInterrupt:
            code = INTERRUPTED
        finally:
            self._stop()
        if self.results is not None:
            print(self.results.summary())
        return code

    def _measure(self) -> int:
        facts = self._begin()
        every = rows(facts["card"]["type"])
        _check(every, self.options.rows)
        waiting = chosen(every, self.options.rows)
        names = [row.name for row in waiting]
        self.results = Results(facts, self.options.out, keep=bool(self.options.rows), waiting=names)
        print("\n".join(shown(facts)), flush=True)
        return 0 if all([self._row(row) for row in waiting]) else 1

    def _begin(self) -> dict:
        """Start the process that measures. Returns what it says about this computer; raises Lost."""
        self.process = Process([self.options.device, self.options.comfyui])
        most = FIRST * (PATIENCE if self.options.device == "cpu" else 1)
        return self.process.answer(max(LEAST, min(most, self.left)))

    def _row(self, row: Row) -> bool:
        """Measure a row and write it down. Returns False if it failed; a row that did not start has not failed."""
        if self.left < LEAST:
            return True
        started = time.monotonic()
        try:
            if self.process is None:
                self._begin()
            self.process.ask(row.request())
            limit = min(row.seconds, self.left)
            found = self.process.answer(limit)
        except Lost as error:
            self._stop()
            cut = self.left < LEAST
            found = {"not_done": "the time was over"} if cut else {"failed": str(error)}
        if found.pop("unusable", False):  # an error after which CUDA answers nothing any more
            self._stop()
        found["took"] = round(time.monotonic() - started, 1)
        self.results.add(row.name, found)
        print(self.results.line(row.name), flush=True)
        return "failed" not in found and found.get("right", True)

    def _stop(self) -> None:
        if self.process is not None:
            self.process.stop()
            self.process = None


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ``timeout`` and Ctrl-C end it in the same way
    sys.exit(main(sys.argv[1:]))
