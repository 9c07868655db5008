"""Writes the loss of every image into the run's folder: a table per measurement, a table and a sheet of verdicts."""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image

from ...atomic import write_table
from ...data.images import open_upright, read_bytes, to_rgb
from ...errors import UserError
from ...evaluate import sheets
from ...evaluate.fixed_noise import OTHERS, TIMES
from ...evaluate.verdicts import Judged, judge, summary
from ...events import Event, ImageLoss, ImagesMeasured
from ..folder import RunFolder
from .png import write_png

MOST = 64  # images on the sheet
COLUMNS = 6
WITH = [f"caption t={t:g}" for t in TIMES]
NUMBERS = ("start", "now", "unknown", "fall", "advantage", "nearest")
BORROWED = [name for n in range(1, OTHERS + 1) for name in (f"lender {n}", f"its caption {n}")]
HEADER = ("image", "held out", *WITH, *BORROWED)


class ImageFiles:
    """A listener that writes ``images/step_000000.csv``, and from the newest one ``images.csv`` and ``images.png``."""

    def __init__(self, folder: RunFolder):
        self.folder = folder

    def __call__(self, event: Event) -> None:
        if not isinstance(event, ImagesMeasured):
            return
        self.folder.images.mkdir(exist_ok=True)
        _write_losses(self.folder.images / f"step_{event.step:06d}.csv", event.images)
        first = read_losses(min(self.folder.images.glob("step_*.csv")))
        if len(first) != len(event.images):  # the run was resumed, and had other images or columns before
            first = list(event.images)
        judged = judge(first, event.images)
        _write_judged(self.folder.image_table, judged)
        write_png(sheet(judged), self.folder.image_sheet)


def _write_losses(path: Path, images: tuple[ImageLoss, ...]) -> None:
    rows = ((i.path, int(i.held_out), *i.with_caption, *sum(i.others, ())) for i in images)
    write_table(path, [HEADER, *rows])


def read_losses(path: Path) -> list[ImageLoss]:
    """The losses in the table of one measurement; an empty list if it has other columns or is damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        return [_read(row, 2 + len(TIMES)) for row in rows] if tuple(header) == HEADER else []
    except (ValueError, IndexError, csv.Error):  # people may open and save these files
        return []


def _read(row: list[str], borrowed: int) -> ImageLoss:
    own, names, losses = row[2:borrowed], row[borrowed::2], row[borrowed + 1 :: 2]
    others = tuple((name, float(loss)) for name, loss in zip(names, losses, strict=True))
    return ImageLoss(Path(row[0]), row[1] == "1", tuple(map(float, own)), others)


def _write_judged(path: Path, judged: list[Judged]) -> None:
    write_table(path, [("image", "verdict", "reason", *NUMBERS, *WITH, *BORROWED), *map(_judged_row, judged)])


def _judged_row(j: Judged) -> tuple:
    numbers = ["" if n is None else f"{n:.6g}" for n in (getattr(j, name) for name in NUMBERS)]
    errors = (f"{n:.6g}" for n in j.image.with_caption)
    return j.image.path, j.verdict, j.reason, *numbers, *errors, *sum(j.image.others, ())


def sheet(judged: list[Judged]) -> Image.Image:
    """Small pictures with their verdicts. Images with a verdict come first, then those whose loss fell the most."""
    order = sorted(judged, key=lambda j: (j.verdict == "", j.verdict, -j.fall))[:MOST]
    rows = [order[i : i + COLUMNS] for i in range(0, len(order), COLUMNS)]
    cells = [sheets.grid([[_thumbnail(j)]], [_line(j)], (j.image.path.name,)) for j in order]
    pictures = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    title = "; ".join(summary(judged)) or "no image stands out"
    return sheets.grid(pictures, [title, *[""] * (len(rows) - 1)], ())


def _line(j: Judged) -> str:
    if j.reason:
        return f"{j.verdict.upper()}. {j.reason}"
    return f"{j.verdict or 'like the others'}: loss {j.start:.3f} to {j.now:.3f}"


def _thumbnail(j: Judged) -> Image.Image:
    try:
        return sheets.small(to_rgb(open_upright(read_bytes(j.image.path), j.image.path.name)))
    except UserError:  # the file is gone; its losses are still known
        return Image.new("RGB", (sheets.SIDE, sheets.SIDE // 2), "#ddd")
