"""Things that stand on the ground or fly (48 x 64 and 48 x 48 pixels), and small ones for rows (32 x 48 pixels)."""

from __future__ import annotations

from collections.abc import Callable

from .brush import Brush


def draw_thing(name: str) -> Brush:
    """The sheet of one thing."""
    brush = Brush(*size_of(name))
    {**STANDING, **FLYING, **SMALL}[name](brush)
    return brush


def size_of(name: str) -> tuple[int, int]:
    """Width and height in pixels of a thing's sheet."""
    return (48, 64) if name in STANDING else (48, 48) if name in FLYING else (32, 48)


def _house(brush: Brush) -> None:
    brush.box("bark", 33, 8, 40, 28)
    brush.box("main", 6, 28, 42, 63)
    brush.polygon("dark", (1, 31), (24, 6), (47, 31))
    brush.box("bark", 20, 46, 30, 63, 1)
    brush.ellipse("gold", 28, 55, 1.3)
    brush.box("cream", 9, 35, 17, 43)
    brush.box("cream", 33, 35, 40, 43)
    brush.ellipse("cream", 24, 22, 4)


def _tree(brush: Brush) -> None:
    brush.box("bark", 20, 38, 28, 63, 1)
    for x, y, radius in ((14, 30, 12), (34, 30, 12), (24, 17, 14), (24, 33, 12)):
        brush.ellipse("main", x, y, radius)
    for x, y in ((15, 28), (27, 15), (33, 31), (22, 36)):
        brush.ellipse("light", x, y, 2.5)


def _car(brush: Brush) -> None:
    brush.polygon("main", (11, 46), (16, 33), (34, 33), (40, 46))
    brush.polygon("glass", (15, 45), (18.5, 36), (24, 36), (24, 45))
    brush.polygon("glass", (27, 45), (27, 36), (32.5, 36), (36, 45))
    brush.box("main", 2, 44, 46, 57, 4)
    brush.box("dark", 2, 52, 46, 56)
    brush.ellipse("gold", 43.5, 48.5, 2.5)
    for x in (13, 35):
        brush.ellipse("black", x, 57, 6)
        brush.ellipse("steel", x, 57, 2.7)


def _tent(brush: Brush) -> None:
    brush.line("bark", 2, (24, 14), (24, 22))
    brush.polygon("rose", (24, 13), (34, 16.5), (24, 20))
    brush.polygon("main", (24, 20), (46, 62), (2, 62))
    brush.polygon("light", (24, 20), (34, 62), (14, 62))
    brush.polygon("dark", (24, 36), (31, 62), (17, 62))


def _rocket(brush: Brush) -> None:
    brush.polygon("beak", (17, 54), (31, 54), (24, 64))
    for side in (-1, 1):
        brush.polygon("dark", (24 + side * 9, 36), (24 + side * 19, 57), (24 + side * 8, 52))
    brush.ellipse("main", 24, 32, 12, 28)
    brush.box("steel", 15, 51, 33, 56, 1)
    brush.polygon("dark", (14, 19), (18, 10), (24, 3), (30, 10), (34, 19))
    brush.ellipse("white", 24, 29, 6.5)
    brush.ellipse("glass", 24, 29, 4.5)


def _kite(brush: Brush) -> None:
    brush.line("black", 1.2, (24, 34), (30, 39), (22, 43), (27, 47))
    brush.polygon("main", (24, 2), (40, 17), (24, 36), (8, 17))
    brush.polygon("light", (24, 2), (24, 17), (8, 17))
    brush.polygon("dark", (24, 17), (40, 17), (24, 36))


def _butterfly(brush: Brush) -> None:
    for side in (-1, 1):
        brush.line("black", 1.5, (24, 14), (24 + side * 6, 5))
        brush.ellipse("main", 24 + side * 12, 17, 10, 10)
        brush.ellipse("dark", 24 + side * 10, 32, 8, 8)
        brush.ellipse("light", 24 + side * 13, 16, 4.5, 4.5)
    brush.ellipse("black", 24, 24, 3, 14)


def _saucer(brush: Brush) -> None:
    brush.polygon("cream", (17, 30), (31, 30), (38, 47), (10, 47))
    brush.ellipse("glass", 24, 18, 11, 12)
    brush.ellipse("main", 24, 25, 22, 8)
    brush.ellipse("dark", 24, 29, 14, 4)
    for x in (8, 18.7, 29.3, 40):
        brush.ellipse("gold", x, 24, 2)


def _plane(brush: Brush) -> None:
    brush.polygon("dark", (3, 8), (12, 8), (17, 22), (8, 22))
    brush.box("main", 4, 16, 44, 31, 7)
    brush.polygon("dark", (18, 26), (31, 26), (22, 42), (14, 42))
    for x in (16, 24, 32):
        brush.ellipse("glass", x, 21.5, 2.8)
    brush.box("black", 44, 14, 46.5, 33, 1)


def _flower(brush: Brush) -> None:
    brush.line("stem", 3, (16, 22), (16, 46))
    brush.ellipse("stem", 9.5, 38, 6, 3)
    brush.ellipse("stem", 22.5, 34, 6, 3)
    for x, y in ((16, 8), (24, 13.5), (21, 23), (11, 23), (8, 13.5)):
        brush.ellipse("main", x, y, 6.5)
    brush.ellipse("gold", 16, 16, 5)


def _mushroom(brush: Brush) -> None:
    brush.box("cream", 10.5, 26, 21.5, 47, 4)
    brush.pen.pieslice([4, 4 * 6, 4 * 31 - 1, 4 * 52 - 1], 180, 360, fill=brush._number("main"))
    for x, y, radius in ((9, 23, 3), (18, 14, 3.5), (24.5, 24, 2.5)):
        brush.ellipse("white", x, y, radius)


def _gift(brush: Brush) -> None:
    brush.box("main", 3, 24, 29, 47, 1)
    brush.box("dark", 1, 18, 31, 26, 1)
    brush.box("gold", 13, 18, 19, 47)
    for side in (-1, 1):
        brush.ellipse("gold", 16 + side * 6, 13, 6, 4.5)
        brush.ellipse("rose", 16 + side * 6, 13, 2.5, 1.8)


def _balloon(brush: Brush) -> None:
    brush.line("black", 1.2, (16, 28), (13, 35), (18, 41), (16, 47))
    brush.polygon("dark", (16, 25), (20, 31), (12, 31))
    brush.ellipse("main", 16, 14, 12.5, 13.5)
    brush.ellipse("light", 11.5, 9.5, 3, 4)


STANDING: dict[str, Callable[[Brush], None]] = {
    "house": _house, "tree": _tree, "car": _car, "tent": _tent, "rocket": _rocket,
}  # fmt: skip
FLYING: dict[str, Callable[[Brush], None]] = {
    "kite": _kite, "butterfly": _butterfly, "saucer": _saucer, "plane": _plane,
}  # fmt: skip
SMALL: dict[str, Callable[[Brush], None]] = {
    "flower": _flower, "mushroom": _mushroom, "gift": _gift, "balloon": _balloon,
}  # fmt: skip
