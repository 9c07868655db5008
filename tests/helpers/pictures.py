"""Pictures and folders that tests of data sets are made of."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from flux2_train.data.folder import read_folder
from flux2_train.settings.dataset_folder import DatasetSettings


def picture(path: Path, size=(64, 64), colour="red", caption: str | None = "a [trigger] thing", **save) -> Path:
    """A plain picture with a caption beside it (None for none)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **save)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def gradient(size: tuple[int, int], flat: float = 0.0) -> Image.Image:
    """A picture whose red grows from left to right and whose green from top to bottom: a pixel says where it was."""
    across = Image.linear_gradient("L").rotate(90).resize(size)
    down = Image.linear_gradient("L").resize(size)
    return Image.merge("RGB", (across, down, Image.new("L", size, int(255 * flat))))


def read(folder: Path, resolution: int = 64, **settings):
    """The data set of a folder."""
    return read_folder(DatasetSettings(folder, resolution=resolution, **settings))


def captions_of(folder: Path, **settings) -> list[str]:
    """The first caption of every item."""
    return [item.caption for item in read(folder, **settings).items]
