"""Choosing layers by glob patterns on their names; a pattern that fits no layer is an error."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from ..errors import UserError


def split(text: str) -> list[str]:
    """The entries of a list with commas or line breaks between them."""
    return [part.strip() for part in re.split(r"[,\n]", text) if part.strip()]


def matching(names: Sequence[str], patterns: str, of: str) -> set[str]:
    """The names that any of the patterns fits.

    Raises UserError for a pattern that fits none; ``of`` says in the message whose layers they are.
    """
    chosen = set()
    for pattern in split(patterns):
        fitting = {name for name in names if fnmatchcase(name, pattern)}
        if not fitting:
            raise UserError(f"The pattern {pattern!r} fits no layer of {of}; its layers are such as {names[0]!r}.")
        chosen |= fitting
    return chosen


def restricted(names: Sequence[str], include: str, exclude: str, of: str) -> set[str]:
    """The names that any ``include`` pattern fits (all, where there is none) and no ``exclude`` pattern."""
    return (matching(names, include, of) if include.strip() else set(names)) - matching(names, exclude, of)
