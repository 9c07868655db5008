"""Sky and ground of a scene. Bands and seams lie on the latent grid of 16 pixels, counted from the bottom."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from .brush import Brush, lay, paint
from .palette import Colour

FLOOR, STRIP = 32, 16  # pixels: what things stand on, and the far land behind it
# Tones of the sky from the land upwards, one band of 32 pixels each; the last goes on to the top.
SKIES: dict[str, tuple[Colour, ...]] = {
    "day": ((200, 234, 250), (164, 216, 246)),
    "sunset": ((255, 208, 128), (252, 160, 116), (222, 120, 138)),
    "night": ((44, 56, 110), (28, 34, 78)),
    "rain": ((176, 188, 200), (146, 160, 176)),
}
# Far land, floor, and the small marks on the floor.
GROUNDS: dict[str, tuple[Colour, Colour, Colour]] = {
    "meadow": ((104, 176, 88), (148, 206, 104), (98, 166, 76)),
    "beach": ((64, 156, 204), (244, 222, 160), (214, 182, 118)),
    "desert": ((206, 124, 72), (232, 166, 98), (196, 122, 66)),
    "snow": ((176, 204, 230), (238, 244, 250), (198, 216, 236)),
    "city": ((112, 118, 144), (164, 166, 178), (226, 226, 220)),
}
CLOUD, SUN, MOON, STAR, RAIN = (252, 254, 255), (255, 214, 64), (250, 240, 196), (255, 246, 190), (104, 130, 170)
WINDOW = (250, 224, 130)


@cache
def draw_scenery(width: int, height: int, sky: str, ground: str) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]. Kept: copy it before laying things on it."""
    picture = np.empty((height, width, 3), np.float32)
    bottom = height - FLOOR - STRIP
    for band in range(0, bottom, 32):
        tones = SKIES[sky]
        tone = tones[min(band // 32, len(tones) - 1)]
        picture[max(bottom - band - 32, 0) : bottom - band] = np.float32(tone) / 255
    picture[bottom:] = np.float32(SKIES[sky][0]) / 255
    _lay(picture, _IN_THE_SKY[sky], lambda role: _ROLES[role])
    far, floor, mark = GROUNDS[ground]
    _lay(picture, _ON_THE_GROUND[ground], lambda role: {"far": far, "floor": floor, "mark": mark, **_ROLES}[role])
    return picture


def _lay(picture: np.ndarray, draw: Callable[[Brush, int, int], None], tone: Callable[[str], Colour]) -> None:
    height, width = picture.shape[:2]
    brush = Brush(width, height)
    draw(brush, width, height)
    lay(picture, paint(brush.covers(), tone), 0, 0)


def _cloud(brush: Brush, x: float, y: float) -> None:
    for dx, dy, radius in ((-9, 2, 5), (0, -2, 7.5), (9, 2, 5.5)):
        brush.ellipse("cloud", x + dx, y + dy, radius)
    brush.box("cloud", x - 13, y + 1, x + 14, y + 7, 3)


def _day(brush: Brush, width: int, height: int) -> None:
    brush.ellipse("sun", width - 18, 16, 11)
    for x in (24, 80) if width > 96 else (24,):
        _cloud(brush, x, 14 if x == 24 else 22)


def _sunset(brush: Brush, width: int, height: int) -> None:
    brush.ellipse("sun", width / 2, height - FLOOR - STRIP, 26)


def _night(brush: Brush, width: int, height: int) -> None:
    brush.ellipse("moon", 20, 18, 11)
    for column in range(3, width // 16):
        for row in range((height - FLOOR - STRIP) // 16):
            if (column * 5 + row * 3) % 4 == 0:
                brush.ellipse("star", column * 16 + 8, row * 16 + 7, 1.6 + (column + row) % 2 * 0.7)


def _rain(brush: Brush, width: int, height: int) -> None:
    for column in range(width // 16):
        for row in range((height - FLOOR - STRIP) // 16):
            x, y = column * 16, row * 16
            brush.line("rain", 1.6, (x + 6, y + 3), (x + 3, y + 9))
            brush.line("rain", 1.6, (x + 14, y + 9), (x + 11, y + 15))


def _meadow(brush: Brush, width: int, height: int) -> None:
    floor = height - FLOOR
    for x in range(0, width + 32, 32):
        brush.ellipse("far", x, floor + 3, 21, 15)
    brush.box("floor", 0, floor, width, height)
    for x in range(0, width, 16):
        for y in (floor + 8, floor + 24):
            brush.polygon("mark", (x + 5, y + 4), (x + 6.5, y - 2), (x + 8, y + 4))
            brush.polygon("mark", (x + 8, y + 4), (x + 10.5, y - 1), (x + 11, y + 4))


def _beach(brush: Brush, width: int, height: int) -> None:
    floor = height - FLOOR
    brush.box("floor", 0, floor, width, height)
    brush.box("far", 0, floor - STRIP, width, floor)
    for x in range(0, width + 16, 16):
        brush.line("cloud", 1.6, (x - 4, floor - 10), (x + 2, floor - 10))
        brush.ellipse("cloud", x + 8, floor, 8, 2.5)
    _dots(brush, width, floor)


def _desert(brush: Brush, width: int, height: int) -> None:
    floor = height - FLOOR
    for x in range(16, width + 32, 48):
        brush.polygon("far", (x - 32, floor), (x, floor - STRIP), (x + 32, floor))
    brush.box("floor", 0, floor, width, height)
    for x in range(0, width, 16):
        brush.line("mark", 1.6, (x + 2, floor + 10), (x + 8, floor + 8))
        brush.line("mark", 1.6, (x + 8, floor + 26), (x + 14, floor + 24))


def _snow(brush: Brush, width: int, height: int) -> None:
    floor = height - FLOOR
    for x in range(16, width + 32, 32):
        brush.polygon("far", (x - 20, floor), (x, floor - STRIP), (x + 20, floor))
        brush.polygon("cloud", (x - 8, floor - 9.6), (x, floor - STRIP), (x + 8, floor - 9.6), (x, floor - 7))
    brush.box("floor", 0, floor, width, height)
    _dots(brush, width, floor)


def _city(brush: Brush, width: int, height: int) -> None:
    floor = height - FLOOR
    for x in range(0, width, 32):
        brush.box("far", x + 1, floor - 16, x + 15, floor)
        brush.box("far", x + 16, floor - 11, x + 30, floor)
        for dx, dy in ((4, 12), (9, 12), (4, 6), (9, 6), (20, 7), (25, 7)):
            brush.box("window", x + dx, floor - dy, x + dx + 3, floor - dy + 3)
    brush.box("floor", 0, floor, width, height)
    for x in range(0, width, 16):
        brush.box("mark", x + 3, height - 10, x + 13, height - 7)


def _dots(brush: Brush, width: int, floor: int) -> None:
    for x in range(0, width, 16):
        brush.ellipse("mark", x + 4, floor + 9, 1.5)
        brush.ellipse("mark", x + 12, floor + 24, 1.5)


_ROLES = {"cloud": CLOUD, "sun": SUN, "moon": MOON, "star": STAR, "rain": RAIN, "window": WINDOW}
_IN_THE_SKY = {"day": _day, "sunset": _sunset, "night": _night, "rain": _rain}
_ON_THE_GROUND = {"meadow": _meadow, "beach": _beach, "desert": _desert, "snow": _snow, "city": _city}
