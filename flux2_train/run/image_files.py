"""The loss of every image alone as files in the run's folder: a table per measurement, one with verdicts, a sheet."""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image

from ..data.images import open_upright, read_bytes, to_rgb
from ..errors import UserError
from . import sheets
from .events import Event, ImageLoss, ImagesMeasured
from .folder import RunFolder
from .judging import Judged, judge, summary
from .preview_files import write_png
from .validation import TIMES

MOST = 64  # images on a sheet
COLUMNS = 6
WITH, WITHOUT = ([f"{kind} t={t:g}" for t in TIMES] for kind in ("caption", "no caption"))


class ImageFiles:
    """A listener that writes ``images/step_000000.csv``, and of the last of these ``images.csv`` and ``images.png``."""

    def __init__(self, folder: RunFolder):
        self.folder = folder

    def __call__(self, event: Event) -> None:
        if not isinstance(event, ImagesMeasured):
            return
        self.folder.images.mkdir(exist_ok=True)
        _write_losses(self.folder.images / f"step_{event.step:06d}.csv", event.images)
        first = read_losses(min(self.folder.images.glob("step_*.csv")))
        if len(first) != len(event.images):  # of a run that was taken up with other images
            first = list(event.images)
        judged = judge(first, event.images)
        _write_judged(self.folder.image_table, judged)
        write_png(sheet(judged), self.folder.image_sheet)


def _write_losses(path: Path, images: tuple[ImageLoss, ...]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "held out", *WITH, *WITHOUT))
        writer.writerows((i.path, int(i.held_out), *i.with_caption, *i.without) for i in images)


def read_losses(path: Path) -> list[ImageLoss]:
    """Inverse of what is written for each measurement."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    times = len(TIMES)
    return [
        ImageLoss(Path(r[0]), r[1] == "1", tuple(map(float, r[2 : 2 + times])), tuple(map(float, r[2 + times :])))
        for r in rows
    ]


def _write_judged(path: Path, judged: list[Judged]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "verdict", "start", "now", "fall", "gain of caption", *WITH, *WITHOUT))
        for j in judged:
            numbers = (j.start, j.now, j.fall, j.gain, *j.image.with_caption, *j.image.without)
            writer.writerow((j.image.path, j.verdict, *(f"{n:.6g}" for n in numbers)))


def sheet(judged: list[Judged]) -> Image.Image:
    """Small pictures with their verdicts, those that have one first, then by how much their loss fell."""
    order = sorted(judged, key=lambda j: (j.verdict == "", j.verdict, -j.fall))[:MOST]
    rows = [order[i : i + COLUMNS] for i in range(0, len(order), COLUMNS)]
    cells = [sheets.grid([[_thumbnail(j)]], [_line(j)], (j.image.path.name,)) for j in order]
    pictures = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    told = "; ".join(summary(judged)) or "no image stands out"
    return sheets.grid(pictures, [told, *[""] * (len(rows) - 1)], ())


def _line(j: Judged) -> str:
    return f"{j.verdict or 'like the others'}: loss {j.start:.3f} to {j.now:.3f}, fall {j.fall:.0%}, gain {j.gain:.0%}"


def _thumbnail(j: Judged) -> Image.Image:
    try:
        return sheets.small(to_rgb(open_upright(read_bytes(j.image.path), j.image.path.name)))
    except UserError:  # gone since; its losses stay
        return Image.new("RGB", (sheets.SIDE, sheets.SIDE // 2), "#ddd")
