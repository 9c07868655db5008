"""Flat drawing with sharp edges: parts are laid over each other on a sheet four times as fine as the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

FINE = 4  # sheet pixels per picture pixel and axis
Point = tuple[float, float]


class Brush:
    """A sheet of ``width`` x ``height`` picture pixels on which each part has the number of its role."""

    def __init__(self, width: int, height: int):
        self.sheet = Image.new("L", (width * FINE, height * FINE), 0)
        self.pen = ImageDraw.Draw(self.sheet)
        self.roles: list[str] = []

    def ellipse(self, role: str, x: float, y: float, across: float, down: float | None = None) -> None:
        """An ellipse around (x, y) with these half axes; a circle without ``down``."""
        down = across if down is None else down
        self.pen.ellipse(_fine((x - across, y - down, x + across, y + down)), fill=self._number(role))

    def box(self, role: str, left: float, top: float, right: float, bottom: float, radius: float = 0) -> None:
        """A rectangle, with rounded corners if ``radius`` is given."""
        self.pen.rounded_rectangle(_fine((left, top, right, bottom)), radius * FINE, fill=self._number(role))

    def polygon(self, role: str, *points: Point) -> None:
        """A filled polygon."""
        self.pen.polygon([(x * FINE, y * FINE) for x, y in points], fill=self._number(role))

    def line(self, role: str, width: float, *points: Point) -> None:
        """A line with round ends and corners."""
        number = self._number(role)
        self.pen.line([(x * FINE, y * FINE) for x, y in points], fill=number, width=round(width * FINE))
        for x, y in points:
            self.ellipse(role, x, y, width / 2)

    def arc(self, role: str, width: float, box: Sequence[float], start: float, end: float) -> None:
        """A part of an ellipse's outline, in degrees clockwise from the right."""
        self.pen.arc(_fine(box), start, end, fill=self._number(role), width=round(width * FINE))

    def covers(self) -> dict[str, np.ndarray]:
        """For each role the share (H, W) of every picture pixel that it covers."""
        labels = np.asarray(self.sheet)
        height, width = (side // FINE for side in labels.shape)
        cells = labels.reshape(height, FINE, width, FINE)
        return {role: (cells == i).mean((1, 3), dtype=np.float32) for i, role in enumerate(self.roles, 1)}

    def _number(self, role: str) -> int:
        if role not in self.roles:
            self.roles.append(role)
        return self.roles.index(role) + 1


def paint(covers: dict[str, np.ndarray], tone: Callable[[str], tuple[int, int, int]]) -> np.ndarray:
    """(H, W, 4) float32: colour times cover, and cover, from the shares of each role."""
    first = next(iter(covers.values()))
    out = np.zeros((*first.shape, 4), np.float32)
    for role, cover in covers.items():
        out[..., :3] += cover[..., None] * np.float32(tone(role)) / 255
        out[..., 3] += cover
    return out


def lay(picture: np.ndarray, sprite: np.ndarray, left: int, top: int) -> None:
    """Lay a sprite (h, w, 4) over (H, W, 3), in place; what lies outside the picture is cut off."""
    rows, columns = slice(max(top, 0), top + sprite.shape[0]), slice(max(left, 0), left + sprite.shape[1])
    part = picture[rows, columns]
    own = sprite[rows.start - top :, columns.start - left :][: part.shape[0], : part.shape[1]]
    part *= 1 - own[..., 3:]
    part += own[..., :3]


def _fine(box: Sequence[float]) -> tuple[float, ...]:
    """Edges in sheet pixels; PIL counts the last pixel in."""
    left, top, right, bottom = (value * FINE for value in box)
    return left, top, max(left, right - 1), max(top, bottom - 1)
