"""A section of the configuration as a node's widgets, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..flux2_train.section import Section

SAME: dict[str, str] = {}  # every widget is called as its field


def from_widgets(kind: type[Section], values: Mapping[str, Any], names: Mapping[str, str] = SAME) -> Section:
    """A section from a node's widgets; ``names`` are those that are called otherwise than their field."""
    return kind(**{f.name: values[names.get(f.name, f.name)] for f in dataclasses.fields(kind)})


def to_widgets(section: Section, names: Mapping[str, str] = SAME) -> dict[str, Any]:
    """What a node's widgets show for a section; inverse of ``from_widgets``."""
    shown = {names.get(f.name, f.name): getattr(section, f.name) for f in dataclasses.fields(section)}
    return {name: _text(value) if isinstance(value, tuple) else value for name, value in shown.items()}


def _text(values: tuple) -> str:
    """A list as the widget takes it: ``1, 0.5``, or ``img=0.5, txt=0`` for pairs."""
    return ", ".join("=".join(map(str, v)) if isinstance(v, tuple) else f"{v:g}" for v in values)
