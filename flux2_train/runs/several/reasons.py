"""Why processes have ended, read from what they said."""

from __future__ import annotations

import re
import signal
from pathlib import Path

MOST_BYTES = 1 << 20  # of the log, from its end
SAID = re.compile(r"^(?:\[rank\d+\]:)?\s*error: (.+)$", re.MULTILINE)  # how the terminal says a UserError
CAUSE = re.compile(r"Root Cause.*?rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", re.DOTALL)  # of torch's launcher
RAISED = re.compile(r"^(?:\[rank\d+\]:)?\s*(\w[\w.]*(?:Error|Exception)): (.+)$", re.MULTILINE)
LONGEST = 2000  # characters


def why(log: Path, count: int) -> str:
    """The sentence that a process said first; else which process ended and how, else the last exception."""
    text = end_of(log)
    said = SAID.search(text)
    if said:
        return said[1].strip()[:LONGEST]
    cause, raised = CAUSE.search(text), RAISED.search(text)
    if cause and int(cause[2]) < 0:
        return _killed(int(cause[1]), -int(cause[2]), count)
    if raised:
        return f"A process ended with {raised[1]}: {raised[2].strip()}"[:LONGEST]
    if cause:
        return f"Process {cause[1]} of {count} (counted from 0) ended with exit code {cause[2]}."
    lines = [line for line in text.splitlines() if line.strip()]
    return f"The processes ended early: {lines[-1].strip() if lines else 'they said nothing'}"[:LONGEST]


def _killed(rank: int, number: int, count: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    memory = "; the system does that when host memory runs out" if name == "SIGKILL" else ""
    return f"Process {rank} of {count} (counted from 0) was ended by {name}{memory}."


def end_of(log: Path) -> str:
    """The end of what the processes have said, empty if it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - MOST_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
