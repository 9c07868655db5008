"""What differs between the settings of two runs, in words."""

from __future__ import annotations

from typing import Any

from ...names import shown
from ..resume import flat

NOT_COMPARED = ("version", "training.name", "output", "unknown")
SECTIONS = ("training", "dataset", "model")  # left out in front of a setting: "rank", not "training.rank"
LONGEST = 80  # characters of a value
NOTHING = "none"


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(setting, value in ``one``, value in ``other``) for each setting that two jobs' plain values do not share."""
    first, second = settings_by_name(one), settings_by_name(other)
    names = [*first, *(name for name in second if name not in first)]
    return [
        (name, in_words(first.get(name)), in_words(second.get(name)))
        for name in names
        if first.get(name) != second.get(name)
    ]


def sentence(found: list[tuple[str, str, str]]) -> str:
    """The differences in one line: ``rank 16 / 32, steps 500 / 1000``."""
    return ", ".join(f"{name} {one} / {other}" for name, one, other in found) or "nothing differs"


def settings_by_name(job: dict[str, Any]) -> dict[str, Any]:
    """Every setting of a job under the name that a person reads."""
    named = dict(flat({place: _unpacked(value) for place, value in job.items()}))
    kept = {name: value for name, value in named.items() if not any(_is_in(name, place) for place in NOT_COMPARED)}
    return {_short(name, kept): value for name, value in kept.items()}


def _unpacked(value: Any) -> Any:
    """A list of sections, as a job has for its data sets: the first one as it is, the others by their number."""
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value) or not value:
        return value
    return {**value[0], **{str(number): each for number, each in enumerate(value[1:], 2)}}


def _is_in(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def _short(name: str, names: dict[str, Any]) -> str:
    section, _, rest = name.partition(".")
    if not rest or section not in SECTIONS or rest[0].isdigit():
        return name
    alike = [other for other in names if other.partition(".")[0] in SECTIONS and other.partition(".")[2] == rest]
    return rest if len(alike) == 1 else name


def in_words(value: Any) -> str:
    """A setting's value as a person reads it."""
    if value is None or value == "" or value == []:
        return NOTHING
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return shown(", ".join(map(str, value)) if isinstance(value, list) else str(value), LONGEST)
