"""The command line, and the process that watches the one that measures: see ``bench.gpu``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.gpu import packed  # noqa: E402
from bench.gpu.process import Lost, Process  # noqa: E402
from bench.gpu.results import Results, shown  # noqa: E402
from bench.gpu.rows import Row, chosen, rows  # noqa: E402

FIRST = 300.0  # seconds that torch and ComfyUI may take to start
LEAST = 5.0  # where fewer seconds are left, no row is begun


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m bench.gpu", description="Measure what is claimed about this card.")
    made.add_argument("--device", choices=("auto", "cpu"), default="auto", help="cpu: a dry run on nano")
    made.add_argument("--minutes", type=float, default=9.0, help="what is not begun by then is left out (default: 9)")
    made.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="only these; klein-9b* names several")
    made.add_argument("--list", action="store_true", help="print the names of all rows")
    made.add_argument("--comfyui", default="", metavar="OPTIONS", help="ComfyUI's own options, as one text")
    made.add_argument("--out", type=Path, help="default: bench/results/gpu_CARD.json")
    made.add_argument("--pack", type=Path, metavar="DIR", help="make a folder for a machine without internet")
    made.add_argument("--python", default="3.12", metavar="VERSION", help="of that machine (default: 3.12)")
    return made


def main(arguments: list[str]) -> int:
    """Run the command. Returns 0 if every row that it began went well, 1 if one failed, 2 if it measured nothing."""
    options = parser().parse_args(arguments)
    if options.pack:
        from bench.gpu.pack import pack

        print(pack(options.pack, options.python))
        return 0
    if options.list:
        print("\n".join(row.name for row in rows(options.device)))
        return 0
    packed.unpack(ROOT)
    return Bench(options).run()


class Bench:
    """One run of the command: the time that is left, the process that measures, and what that process answers."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.end = options, time.monotonic() + 60 * options.minutes
        self.process: Process | None = None

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def run(self) -> int:
        """See ``main``."""
        try:
            facts = self._begin()
        except Lost as error:
            print(f"Nothing could be measured: {error}", file=sys.stderr)
            return 2
        self.results = Results(facts, self.options.out, keep=bool(self.options.rows))
        print("\n".join(shown(facts)), flush=True)
        waiting = chosen(rows(facts["card"]["type"]), self.options.rows)
        if not waiting:
            print(f"No row is called {' or '.join(self.options.rows)}; --list prints their names.", file=sys.stderr)
            return 2
        try:
            went_well = all([self._row(row) for row in waiting])
        finally:
            self._stop()
        self.results.leave_out([row.name for row in waiting if row.name not in self.results.begun])
        print(self.results.summary())
        return 0 if went_well else 1

    def _begin(self) -> dict:
        """Start the process that measures. Returns what it says about this computer; raises Lost."""
        self.process = Process([self.options.device, self.options.comfyui])
        return self.process.answer(max(LEAST, min(FIRST, self.left)))

    def _row(self, row: Row) -> bool:
        """Measure a row and write it down. Returns False if it failed; a row that was not begun has not failed."""
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
    sys.exit(main(sys.argv[1:]))
