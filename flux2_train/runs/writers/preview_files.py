"""Writes previews into the run's folder: every picture, and one contact sheet that shows all of them over time."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from ...evaluate import sheets
from ...events import Event, Previewed
from ...train.preview_request import PreviewRequest
from ..folder import RunFolder
from .png import PREVIEW, write_png

MOST_COLUMNS = 16


class PreviewFiles:
    """A listener that writes ``previews/step_000100_1.png``, ``previews/base_1.png`` and ``previews.png``.

    The sheet is made from the files in the folder, so that it also shows what was painted before a run was resumed.
    """

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self.thumbnails: dict[Path, Image.Image] = {}
        self.labels: dict[int, str] = {}

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Previewed):
            return
        self.folder.previews.mkdir(exist_ok=True)
        for count, picture in enumerate(event.pictures, 1):
            number = picture.number or count
            self.labels[number] = picture.label
            path = self.folder.previews / f"step_{event.step:06d}_{number}.png"
            self._save(sheets.to_picture(picture.painted), path, picture.asked)
            base = {**picture.asked, "strength": 0.0, "training_steps": 0}
            self._save(sheets.to_picture(picture.base), self._base(number), base)
        write_png(self._sheet(), self.folder.contact_sheet)

    def _base(self, number: int) -> Path:
        return self.folder.previews / f"base_{number}.png"

    def _save(self, picture: Image.Image, path: Path, request: dict) -> None:
        self.thumbnails[path] = sheets.small(picture)
        write_png(picture, path, json.dumps(request))

    def _sheet(self) -> Image.Image:
        """One row per prompt that this process has painted, one column for the base model and for each step.

        Where there are many steps, they are evenly thinned out.
        """
        matches = [PREVIEW.fullmatch(path.name) for path in self.folder.previews.iterdir()]
        steps = sheets.spread(sorted({int(match[1]) for match in matches if match}), MOST_COLUMNS)
        rows = []
        for number in sorted(self.labels):
            paths = [self._base(number), *(self.folder.previews / f"step_{s:06d}_{number}.png" for s in steps)]
            rows.append([self._thumbnail(path) for path in paths])
        labels = [self.labels[number] for number in sorted(self.labels)]
        return sheets.grid(rows, labels, ("base model", *(f"step {step}" for step in steps)))

    def _thumbnail(self, path: Path) -> Image.Image | None:
        if path not in self.thumbnails and path.is_file():
            with Image.open(path) as picture:
                self.thumbnails[path] = sheets.small(picture.convert("RGB"))
        return self.thumbnails.get(path)


def save_references(previews: PreviewRequest | None, folder: RunFolder) -> tuple[tuple[Path, ...], ...]:
    """Write each prompt's reference images as PNG files, so that a job can name them. Returns the paths per prompt."""
    saved = []
    for number, images in enumerate(previews.references if previews else (), 1):
        pictures = [sheets.to_picture(picture) for image in images for picture in image]
        paths = tuple(folder.references / f"{number}_{count}.png" for count in range(1, len(pictures) + 1))
        for picture, path in zip(pictures, paths, strict=True):
            folder.references.mkdir(exist_ok=True)
            write_png(picture, path)
        saved.append(paths)
    return tuple(saved)
