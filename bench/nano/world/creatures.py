"""Creatures: a head with a face, a body, arms and feet, and a hat. Drawn on 48 x 64 pixels, feet at the bottom."""

from __future__ import annotations

from collections.abc import Callable

from .brush import Brush

WIDTH, HEIGHT = 48, 64
MIDDLE = WIDTH / 2
HEAD = 31.0  # height of the head's middle
POSES = ("standing", "waving", "jumping")


def draw_creature(species: str, hat: str, pose: str) -> Brush:
    """The sheet of one creature."""
    brush = Brush(WIDTH, HEIGHT)
    if species == "ghost":
        _sheet(brush, pose)
    else:
        _body(brush, pose)
    SPECIES[species](brush)
    HATS[hat](brush)
    return brush


def _body(brush: Brush, pose: str) -> None:
    """Trunk, belly, arms and feet."""
    spread = 4 if pose == "jumping" else 0
    for side in (-1, 1):
        brush.ellipse("dark", MIDDLE + side * (7 + spread), 61 - spread / 2, 6, 3)
        shoulder, up = (MIDDLE + side * 10, 48), pose == "jumping" or (pose == "waving" and side > 0)
        hand = (MIDDLE + side * 19, 36) if up else (MIDDLE + side * 15, 55)
        brush.line("dark", 6, shoulder, hand)
    brush.ellipse("main", MIDDLE, 51, 12.5, 11)
    brush.ellipse("light", MIDDLE, 53, 8, 7.5)


def _sheet(brush: Brush, pose: str) -> None:
    """A ghost's body: a cloth whose hem has waves, and two stubs for arms."""
    brush.box("main", 8, 28, 40, 58)
    for x in (12, 24, 36):
        brush.ellipse("main", x, 58, 5, 5)
    for side in (-1, 1):
        up = pose == "jumping" or (pose == "waving" and side > 0)
        brush.line("main", 6, (MIDDLE + side * 14, 46), (MIDDLE + side * 20.5, 37 if up else 52))


def _eyes(brush: Brush, apart: float = 8, y: float = HEAD, size: float = 4.5) -> None:
    for side in (-1, 1):
        brush.ellipse("white", MIDDLE + side * apart, y, size)
        brush.ellipse("black", MIDDLE + side * (apart - 1), y + 0.5, size * 0.55)


def _smile(brush: Brush, y: float, half: float = 4) -> None:
    brush.arc("black", 1.5, (MIDDLE - half, y - half, MIDDLE + half, y + half), 20, 160)


def _head(brush: Brush, across: float = 18, down: float = 14) -> None:
    brush.ellipse("main", MIDDLE, HEAD, across, down)


def _cat(brush: Brush) -> None:
    brush.line("dark", 4, (37, 58), (44, 54), (44, 47))
    for side in (-1, 1):
        brush.polygon("main", *((MIDDLE + side * x, y) for x, y in ((17, 8), (18, 30), (4, 20))))
        brush.polygon("light", *((MIDDLE + side * x, y) for x, y in ((15, 13), (15.5, 24), (8, 19))))
    _head(brush)
    _eyes(brush)
    brush.polygon("blush", (MIDDLE - 2.5, 36), (MIDDLE + 2.5, 36), (MIDDLE, 39))
    for side in (-1, 1):
        for y in (36, 40):
            brush.line("black", 1, (MIDDLE + side * 8, 38), (MIDDLE + side * 16, y))


def _rabbit(brush: Brush) -> None:
    for side in (-1, 1):
        brush.ellipse("main", MIDDLE + side * 9, 13, 5.5, 13)
        brush.ellipse("light", MIDDLE + side * 9, 14, 2.5, 9)
    _head(brush, 16)
    _eyes(brush, 7)
    brush.ellipse("blush", MIDDLE, 37, 2.5, 2)
    brush.box("white", MIDDLE - 3, 39, MIDDLE + 3, 44, 1)


def _bear(brush: Brush) -> None:
    for side in (-1, 1):
        brush.ellipse("main", MIDDLE + side * 14, 19, 7)
        brush.ellipse("dark", MIDDLE + side * 14, 19, 4)
    _head(brush)
    brush.ellipse("light", MIDDLE, 38, 8.5, 6)
    _eyes(brush, 8, 29, 4)
    brush.ellipse("black", MIDDLE, 35.5, 3, 2.2)


def _frog(brush: Brush) -> None:
    _head(brush, 20, 12)
    for side in (-1, 1):
        brush.ellipse("main", MIDDLE + side * 11, 20, 7.5)
        brush.ellipse("white", MIDDLE + side * 11, 19.5, 5)
        brush.ellipse("black", MIDDLE + side * 10, 20, 2.7)
        brush.ellipse("blush", MIDDLE + side * 14, 36, 2.5)
    brush.arc("black", 2, (MIDDLE - 10, 24, MIDDLE + 10, 40), 15, 165)


def _owl(brush: Brush) -> None:
    for side in (-1, 1):
        brush.polygon("dark", *((MIDDLE + side * x, y) for x, y in ((16, 11), (17, 28), (4, 19))))
    _head(brush, 17, 14)
    for side in (-1, 1):
        brush.ellipse("light", MIDDLE + side * 8, 30, 8.5)
    _eyes(brush, 8, 30, 6)
    brush.polygon("beak", (MIDDLE - 3.5, 34), (MIDDLE + 3.5, 34), (MIDDLE, 41))


def _bird(brush: Brush) -> None:
    for x, y in ((-4, 15), (0, 12), (4, 15)):
        brush.line("dark", 3, (MIDDLE, 20), (MIDDLE + x, y))
    _head(brush, 15, 14)
    _eyes(brush, 7, 28, 4)
    brush.polygon("beak", (MIDDLE - 6, 35), (MIDDLE, 31.5), (MIDDLE + 6, 35), (MIDDLE, 40))


def _ghost(brush: Brush) -> None:
    _head(brush, 16, 15)
    for side in (-1, 1):
        brush.ellipse("black", MIDDLE + side * 6, 30, 3, 4.5)
        brush.ellipse("light", MIDDLE + side * 11, 37, 3, 2)
    brush.ellipse("black", MIDDLE, 40, 3, 3.5)


def _monster(brush: Brush) -> None:
    for side in (-1, 1):
        brush.polygon("cream", *((MIDDLE + side * x, y) for x, y in ((18, 9), (17, 27), (8, 21))))
    _head(brush, 18, 15)
    brush.ellipse("white", MIDDLE, 27, 8)
    brush.ellipse("black", MIDDLE, 28, 4)
    brush.box("black", MIDDLE - 9, 37, MIDDLE + 9, 42, 2)
    for x in (-6, 0, 6):
        brush.polygon("white", (MIDDLE + x - 2.5, 37), (MIDDLE + x + 2.5, 37), (MIDDLE + x, 41))


def _bare(brush: Brush) -> None:
    """No hat."""


def _top_hat(brush: Brush) -> None:
    brush.box("black", 14, 2, 34, 19, 1)
    brush.box("rose", 14, 12, 34, 16)
    brush.box("black", 8, 16, 40, 20, 2)


def _crown(brush: Brush) -> None:
    brush.polygon("gold", (11, 20), (9, 5), (17, 12), (24, 2), (31, 12), (39, 5), (37, 20))
    for x in (16, 24, 32):
        brush.ellipse("rose", x, 16, 2)


def _party_hat(brush: Brush) -> None:
    brush.polygon("rose", (12, 20), (24, 2), (36, 20))
    brush.polygon("white", (15.3, 15), (18.7, 10), (29.3, 10), (32.7, 15))
    brush.ellipse("gold", 24, 4, 4)


def _wizard_hat(brush: Brush) -> None:
    brush.polygon("violet", (12, 18), (28, 0), (36, 18))
    brush.ellipse("violet", 24, 18, 19, 4)
    brush.polygon("gold", (24, 7), (28, 11), (24, 15), (20, 11))


SPECIES: dict[str, Callable[[Brush], None]] = {
    "cat": _cat,
    "rabbit": _rabbit,
    "bear": _bear,
    "frog": _frog,
    "owl": _owl,
    "bird": _bird,
    "ghost": _ghost,
    "monster": _monster,
}
HATS: dict[str, Callable[[Brush], None]] = {
    "": _bare,
    "top hat": _top_hat,
    "crown": _crown,
    "party hat": _party_hat,
    "wizard hat": _wizard_hat,
}
