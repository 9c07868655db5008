"""Requests to a run, which acts on them within a step. They are files in its folder, so any program may ask."""

from __future__ import annotations

import json
import time
from pathlib import Path

from ...atomic import write_text
from ...errors import UserError
from ...settings.base import plain
from ...settings.steering import STOP, Request
from ..folder import RunFolder

MOST_BYTES = 1 << 20  # of one request
MOST_WAITING = 100


def ask(folder: RunFolder, request: Request) -> None:
    """Ask the run for something. Raises UserError if no process trains it, or if too much was asked already."""
    if request.ask == STOP:
        folder.ask_to_stop()
        return
    folder.require_held()
    folder.asked.mkdir(exist_ok=True)
    if len(waiting(folder)) >= MOST_WAITING:
        raise UserError(f"{MOST_WAITING} requests wait for the run {folder.name}; wait for its next step.")
    write_text(folder.asked / f"{time.time_ns():020}.json", json.dumps(plain(request)))


def waiting(folder: RunFolder) -> list[Path]:
    """The requests that the run has not seen yet, the oldest first."""
    return sorted(folder.asked.glob("*.json"))
