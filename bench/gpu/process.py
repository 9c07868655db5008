"""The process that measures, as its parent sees it: asked in lines of JSON, watched, and ended when it hangs."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Lost(Exception):
    """The process ended, or gave no answer in time."""


class Process:
    """``bench.gpu.worker`` with these arguments. What it writes to stderr is passed on."""

    def __init__(self, arguments: list[str]):
        command = [sys.executable, "-m", "bench.gpu.worker", *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def ask(self, request: dict) -> None:
        """Send a request. Raises Lost."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Lost(f"the process that measures is gone ({error})") from error

    def answer(self, seconds: float) -> dict:
        """Wait for the process's next answer. Raises Lost if it gives none within ``seconds``, or ends."""
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            raise Lost(f"no answer in {seconds:.0f} s") from None
        if not line:
            raise Lost(f"the process that measures ended with {self.process.wait()}")
        return json.loads(line)

    def stop(self) -> None:
        """Kill the process, because it may hang in a driver."""
        self.process.kill()
        self.process.wait()
