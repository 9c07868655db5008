"""What a data set looks like, for people: text and a contact sheet with the crop boxes."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..errors import UserError
from ..names import counted, shown
from .cache import EmbedCache, LatentCache
from .dataset import Dataset, Item
from .images import open_shrunk, read_bytes, to_rgb
from .order import epoch_batches
from .samples import Samples

THUMBNAIL = 192  # pixels
MOST = 48  # pictures on a sheet
GAP = 6
LISTED = 20  # lines of one kind in the text


def summary(dataset: Dataset, batches: tuple[int, ...] = (1, 2, 4)) -> str:
    """Text on a data set: warnings and skipped files, then counts, buckets and steps per epoch at those batch sizes."""
    lines = _shortened([f"warning: {warning}" for warning in dataset.warnings])
    lines += _shortened([f"skipped {reason}" for reason in dataset.skipped])
    lines += dataset.notes
    for number, source in enumerate(dataset.sources):
        count = sum(item.source == number for item in dataset.items)
        kind = " (regularisation)" if source.is_reg else ""
        share = f", probability {source.probability:g}" if source.probability < 1 else ""
        lines.append(
            f"{counted(count, 'image', 'images')} x {source.repeats} from {shown(source.folder.name)}{kind}{share}"
        )
    lines += [f"{w}x{h}: {n}" for (w, h), n in sorted(Counter(item.size for item in dataset.items).items())]
    steps = [f"{steps_per_epoch(dataset, batch)} at batch {batch}" for batch in batches]
    lines.append(f"steps per epoch: {', '.join(steps)}")
    return "\n".join(lines)


def _shortened(lines: list[str]) -> list[str]:
    rest = len(lines) - LISTED
    return lines[:LISTED] + ([f"... and {rest} more"] if rest > 0 else [])


def steps_per_epoch(dataset: Dataset, batch: int) -> int:
    """The number of batches in the first epoch; each batch holds images of one size."""
    return len(epoch_batches(Samples(EmbedCache(dataset, {}), LatentCache(dataset, {})), batch, 0, 0))


def contact_sheet(dataset: Dataset) -> Image.Image:
    """Small pictures with their crop boxes, sizes and names; evenly chosen where there are many."""
    chosen = _chosen(dataset)
    columns = min(8, max(1, math.ceil(math.sqrt(len(chosen)))))
    cell = THUMBNAIL + GAP, THUMBNAIL + 32
    rows = math.ceil(len(chosen) / columns)
    sheet = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP), "white")
    for number, items in enumerate(chosen):
        at = GAP + number % columns * cell[0], GAP + number // columns * cell[1]
        _draw(sheet, at, items)
    return sheet


def _chosen(dataset: Dataset) -> list[list[Item]]:
    """The files to show, each as the list of its items, which differ in crop, size or flip."""
    by_file: dict = {}
    for item in dataset.items:
        by_file.setdefault(item.path, []).append(item)
    groups = list(by_file.values())
    if len(groups) <= MOST:
        return groups
    return [groups[i * len(groups) // MOST] for i in range(MOST)]


def _draw(sheet: Image.Image, at: tuple[int, int], items: list[Item]) -> None:
    draw, first = ImageDraw.Draw(sheet), items[0]
    try:
        data = read_bytes(first.path)
        picture, shrink = open_shrunk(data, first.path.name, first.view.crop.room * max(first.size) / THUMBNAIL)
    except UserError:  # the file was removed meanwhile; its place on the sheet stays empty
        return
    width = picture.width * shrink
    thumbnail = to_rgb(picture, first.view.background or "white")
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    sheet.paste(thumbnail, at)
    scale = thumbnail.width / width
    for item in (each for each in items if not each.view.crop.angle):
        left, top, right, bottom = (value * scale for value in item.view.crop.box)
        draw.rectangle((at[0] + left, at[1] + top, at[0] + right - 1, at[1] + bottom - 1), outline="#d22")
    sizes = ", ".join(dict.fromkeys(f"{i.size[0]}x{i.size[1]}" for i in items))
    text = f"{shown(first.path.name)[:28]}\n{sizes[:28]}"
    draw.text((at[0], at[1] + THUMBNAIL + 2), text, fill="black", font=_font())


@cache
def _font() -> ImageFont.FreeTypeFont:
    """A font with more letters than Pillow's own, because file names are in every language."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 10)
