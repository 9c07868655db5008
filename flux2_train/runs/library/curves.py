"""The losses of a run as few points as a picture of that width can show, read from ``loss.csv``."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from ...bounded import is_file

PIECE = 512  # bytes read around one point: a row has about 90
WHOLE = 16 * PIECE  # a file of at most so many bytes is read at once
STEP, LOSS, SMOOTHED = "step", "loss", "smoothed"
COLUMNS = (STEP, LOSS, SMOOTHED)

Row = tuple[float, ...]


def sparkline(path: Path, most: int) -> list[float]:
    """The smoothed loss at ``most`` places of the run at most, evenly spread; empty without a readable file."""
    return [row[2] for row in rows(path, most)]


def rows(path: Path, most: int) -> list[Row]:
    """(step, loss, smoothed loss) of ``most`` steps at most, the first and the last among them, in their order.

    However long the file is, only a small piece of it is read for each point.
    """
    if not is_file(path):
        return []
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            places = _places(file.readline())
            start = file.tell()
            if size <= WHOLE:
                found = [_row(line, places) for line in file.read(WHOLE).splitlines()]
                return _spread([row for row in found if row], most)
            return _sampled(file, start, size, places, most)
    except (OSError, ValueError):
        return []


def _places(header: bytes) -> list[int]:
    """Where COLUMNS stand in a row. Raises ValueError for another table."""
    names = next(csv.reader([header.decode().strip()]), [])
    return [names.index(name) for name in COLUMNS]


def _row(line: bytes, places: list[int]) -> Row | None:
    cells = line.split(b",")
    try:
        row = tuple(float(cells[place]) for place in places)
    except (IndexError, ValueError):
        return None
    return row if all(map(math.isfinite, row)) else None


def _sampled(file, start: int, size: int, places: list[int], most: int) -> list[Row]:
    found: dict[float, Row] = {}
    for number in range(most):
        last = number == most - 1
        place = max(start, size - PIECE) if last else start + (size - start) * number // max(1, most - 1)
        file.seek(place)
        lines = file.read(PIECE).splitlines()
        if place > start:
            lines = lines[1:]  # it began in the middle of a row
        whole = lines if last else lines[:1]
        found.update((row[0], row) for line in whole[-1:] if (row := _row(line, places)))
    return [found[step] for step in sorted(found)]


def _spread(found: list[Row], most: int) -> list[Row]:
    if len(found) <= most:
        return found
    return [found[round(number * (len(found) - 1) / (most - 1))] for number in range(most)]
