"""The verdicts on single images that runs have left, found again for a data folder."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from ..bounded import is_file, read_text
from ..errors import UserError
from ..evaluate.fixed_noise import OTHERS
from .folder import RunFolder

MOST_BYTES = 1 << 26  # of images.csv
MOST_RUNS = 100  # newest first, that are looked at


@dataclass(frozen=True)
class Verdict:
    """What a run said of one image. ``better`` is the name of the image whose caption fits best, empty if none does."""

    verdict: str
    reason: str
    better: str = ""


def newest(runs: Path, root: Path) -> tuple[str, dict[str, Verdict]]:
    """(name of the newest run that measured images of the folder ``root``, its verdicts by relative name)."""
    tables = [(RunFolder(path).image_table, path.name) for path in (runs.iterdir() if runs.is_dir() else ())]
    there = sorted(((table.stat().st_mtime, name, table) for table, name in tables if is_file(table)), reverse=True)
    for _, name, table in there[:MOST_RUNS]:
        found = read(table, root)
        if found is not None:
            return name, found
    return "", {}


def read(table: Path, root: Path) -> dict[str, Verdict] | None:
    """The verdicts of a table on images below ``root`` by relative name; None if it is about none of them."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(table, MOST_BYTES))))
        ours = [(Path(row["image"]).relative_to(root).as_posix(), row) for row in rows if _below(row["image"], root)]
        judged = {name: Verdict(row["verdict"], row["reason"] or "", _better(row)) for name, row in ours}
    except (UserError, csv.Error, KeyError, TypeError, ValueError):  # people may open and save these files
        return None
    return judged or None


def _below(path: str, root: Path) -> bool:
    return bool(path) and Path(path).is_relative_to(root)


def _better(row: dict) -> str:
    """The lender of the caption with the lowest loss."""
    lent = [(float(loss), row[f"lender {n}"]) for n in range(1, OTHERS + 1) if (loss := row.get(f"its caption {n}"))]
    return min(lent)[1] if lent else ""
