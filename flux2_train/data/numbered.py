"""Several references of one image in one folder: ``photo_0.png``, ``photo_1.png`` for ``photo.jpg``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path


def numbered(partners: Mapping[str, Path], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For each of ``names`` the names of its partners: its own if there is one, else those with a number behind ``_``.

    The numbers order them. A name without any partner is left out.
    """
    groups: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for partner in partners:
        name, line, number = partner.rpartition("_")
        if line and number.isascii() and number.isdecimal() and len(number) <= 6:
            groups[name].append((int(number), partner))
    found = {name: (name,) if name in partners else tuple(p for _, p in sorted(groups.get(name, ()))) for name in names}
    return {name: those for name, those in found.items() if those}
