"""A part of the configuration: checked as a whole when it is made, and its lists as users write them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from .errors import UserError

INF = math.inf


class Section:
    """A part of the configuration, checked as a whole as soon as it is made."""

    def __post_init__(self):
        for problem in self.problems():
            raise UserError(problem)

    def problems(self) -> Iterator[str]:
        """One sentence for each thing that cannot be."""
        yield from ()


def choices(section: Section, **allowed: tuple[str, ...]) -> Iterator[str]:
    """A sentence for every setting that is none of those allowed."""
    for name, values in allowed.items():
        if getattr(section, name) not in values:
            yield f"{_spoken(name)} is {getattr(section, name)!r}; choose one of {', '.join(values)}."


def ranges(section: Section, **limits: tuple[float, float]) -> Iterator[str]:
    """A sentence for every setting that is not within its (least, most)."""
    for name, (least, most) in limits.items():
        value = getattr(section, name)
        if not least <= value <= most:
            upper = "" if math.isinf(most) else f" and at most {most:g}"
            yield f"{_spoken(name)} is {value:g}; it must be at least {least:g}{upper}."


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def numbers(text: str, name: str) -> tuple[float, ...]:
    """The numbers in a text such as ``1, 0.5``. Raises UserError for anything else in it."""
    try:
        return tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError as error:
        raise UserError(f"{name} is {text!r}; it takes numbers with commas between them, such as 1, 0.5.") from error


def rates(text: str) -> tuple[tuple[str, float], ...]:
    """The pairs in a text such as ``double_blocks=0.5, single_blocks=0``. Raises UserError for anything else in it."""
    pairs = [word.rpartition("=") for word in text.split(",") if word.strip()]
    try:
        found = tuple((pattern.strip(), float(rate)) for pattern, _, rate in pairs)
        for pattern, _ in found:
            re.compile(pattern)
    except (ValueError, re.error) as error:
        raise UserError(f"block_rates is {text!r}; it takes pairs such as double_blocks=0.5, img_mlp=0.") from error
    if not all(pattern for pattern, _ in found):
        raise UserError(f"block_rates is {text!r}; every factor needs a layer name before its '='.")
    return found
