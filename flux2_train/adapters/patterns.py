"""Choosing layers by glob patterns on their names; a pattern that fits nothing is a mistake worth naming."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from ..errors import UserError


def split(text: str) -> list[str]:
    """What stands between commas or on lines of its own."""
    return [part.strip() for part in re.split(r"[,\n]", text) if part.strip()]


def matching(names: Sequence[str], patterns: str, of: str) -> set[str]:
    """The names that any of the patterns fits. Raises UserError for a pattern that fits none; ``of`` says whose."""
    found = set()
    for pattern in split(patterns):
        fitting = {name for name in names if fnmatchcase(name, pattern)}
        if not fitting:
            raise UserError(f"The pattern {pattern!r} fits no layer of {of}; its layers are such as {names[0]!r}.")
        found |= fitting
    return found


def restricted(names: Sequence[str], include: str, exclude: str, of: str) -> set[str]:
    """The names that any ``include`` pattern fits (all, where there is none) and no ``exclude`` pattern."""
    return (matching(names, include, of) if include.strip() else set(names)) - matching(names, exclude, of)
