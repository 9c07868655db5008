"""The losses of a run as few points as a picture of that width can show.

They are read from ``loss.csv``, which is there once a run has ended, else from the record of a run that trains.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

from ...bounded import from_json, is_file, read_text
from ..folder import RunFolder

PIECE = 512  # bytes read around one point: a row has about 90
WHOLE = 1 << 17  # a file of at most so many bytes is read at once
MOST_RECORD = 1 << 23  # bytes
STEP, LOSS, SMOOTHED = "step", "loss", "smoothed"
COLUMNS = (STEP, LOSS, SMOOTHED)

Row = tuple[float, ...]


def losses(folder: RunFolder, most: int) -> list[Row]:
    """(step, loss, smoothed loss) of ``most`` steps of a run at most; empty without a readable file."""
    return rows(folder.losses, most) or recorded(folder.record, most)


def recorded(path: Path, most: int) -> list[Row]:
    """As ``rows``, from the lines of JSON that a run writes while it trains. A step that was repeated counts once."""
    try:
        lines = read_text(path, MOST_RECORD).splitlines() if is_file(path) else []
    except ValueError:
        return []
    found: dict[float, Row] = {}
    for line in lines:
        found.update((row[0], row) for row in _steps(line))
    return _spread([found[step] for step in sorted(found)], most)


def _steps(line: str) -> list[Row]:
    try:
        entry = from_json(line) if '"steps"' in line else {}
        first, losses, smoothed = int(entry["first"]), entry["loss"], entry["smoothed"]
        found = [(float(first + n), float(a), float(b)) for n, (a, b) in enumerate(zip(losses, smoothed, strict=True))]
    except (ValueError, KeyError, TypeError):
        return []
    return found


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
                chosen = _spread(file.read(WHOLE).splitlines(), most)
                return [row for line in chosen if (row := _row(line, places))]
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


def _spread(found: list, most: int) -> list:
    if len(found) <= most:
        return found
    return [found[round(number * (len(found) - 1) / (most - 1))] for number in range(most)]
