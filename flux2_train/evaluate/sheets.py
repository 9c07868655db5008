"""Puts labelled pictures together into one: previews beside the base model, previews over time, compared LoRAs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

GAP = 8
HEAD = 18  # pixels for a column's name
LINE = 13  # pixels per line of a row's name
SIDE = 192  # the longer side of a small picture
LIVE_ROWS = 4  # prompts shown on the node during a run

Row = Sequence[Image.Image | None]


def to_picture(image: Tensor) -> Image.Image:
    """8-bit RGB of an image (H, W, 3) in 0..1, rounded to the nearest."""
    return Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def small(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """``picture`` shrunk to ``side`` pixels on its longer side, never enlarged."""
    scale = min(1.0, side / max(picture.size))
    return picture.resize([max(1, round(n * scale)) for n in picture.size], Image.Resampling.LANCZOS)


def grid(
    rows: Sequence[Row], row_names: Sequence[str], column_names: Sequence[str], names_from: int = 0
) -> Image.Image:
    """A table of pictures. Names of rows and columns stand above them; ``None`` is an empty cell.

    A row's name begins above its picture in column ``names_from``: those to the left of it are not what it names.
    """
    width = max(p.width for row in rows for p in row if p)
    heights = [max(p.height for p in row if p) for row in rows]
    columns = max(map(len, rows))
    names = [textwrap.wrap(name, max(20, (columns - names_from) * width // 7)) or [""] for name in row_names]
    tops = [0]
    for height, lines in zip(heights, names, strict=True):
        tops.append(tops[-1] + height + LINE * len(lines) + 2 * GAP)
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), HEAD + GAP + tops[-1]), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(column_names):
        draw.text((GAP + column * (width + GAP), GAP // 2), _shortened(name, width), fill="black", font_size=11)
    for row, lines, top in zip(rows, names, tops, strict=False):
        at = GAP + names_from * (width + GAP), HEAD + top
        draw.multiline_text(at, "\n".join(lines), fill="#444", font_size=10, spacing=2)
        for column, picture in enumerate(row):
            if picture:
                sheet.paste(picture, (GAP + column * (width + GAP), HEAD + top + LINE * len(lines) + GAP // 2))
    return sheet


def _shortened(text: str, width: int) -> str:
    most = max(4, width // 6)
    return text if len(text) <= most else text[: most - 3] + "..."


def spread(values: Sequence, most: int) -> list:
    """At most ``most`` of the values at even distances, including the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[math.floor(i * (len(values) - 1) / (most - 1) + 0.5)] for i in range(most)]
