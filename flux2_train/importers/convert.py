"""Values as other trainers write them: numbers and switches as text too, choices under other names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .draft import NotHere

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def number(value: Any) -> float:
    """A number, also as text such as ``1e-4`` (which YAML reads as text)."""
    if isinstance(value, bool):
        raise NotHere(f"{value} is no number")
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        raise NotHere("it is no number") from None
    if not math.isfinite(result):
        raise NotHere("it is no finite number")
    return result


def whole(value: Any) -> int:
    """A whole number, also as text."""
    result = number(value)
    if result != int(result):
        raise NotHere(f"{result:g} is no whole number")
    return int(result)


def flag(value: Any) -> bool:
    """On or off, also as text. An option without a value is on."""
    text = str(value).strip().lower()
    if text not in TRUE + FALSE:
        raise NotHere("it is neither true nor false")
    return text in TRUE


def text(value: Any) -> str:
    """A text; a number as it is written."""
    if isinstance(value, (list, dict)):
        raise NotHere("it is a list, and our setting is one text")
    return str(value)


def numbers(value: Any) -> list[float]:
    """Several numbers: a list, or a text with commas or spaces between them."""
    words = value if isinstance(value, (list, tuple)) else str(value).strip("[]()").replace(",", " ").split()
    return [number(word) for word in words]


def betas(*values: Any) -> list[float]:
    """The two decays of an Adam."""
    found = [number(value) for value in values]
    if len(found) != 2 or not all(0 <= each < 1 for each in found):
        raise NotHere("two betas are needed, each at least 0 and below 1")
    return found


def oneof(names: Mapping[Any, Any], otherwise: str) -> Callable[[Any], Any]:
    """A choice under its name here; names are compared without case. ``otherwise`` says what else there is."""
    lowered = {str(name).lower(): ours for name, ours in names.items()}

    def choose(value: Any) -> Any:
        found = lowered.get(str(value).strip().lower())
        if found is None:
            raise NotHere(otherwise)
        return found

    return choose


def share(of: float) -> Callable[[Any], float]:
    """A number counted in parts of ``of``, such as timesteps of 1000."""
    return lambda value: number(value) / of


def times(factor: float) -> Callable[[Any], float]:
    """A number multiplied, such as a share as percents."""
    return lambda value: number(value) * factor


def lines(value: Any) -> list[str]:
    """Texts, one or a list of them, without empty ones."""
    entries = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [str(entry).strip() for entry in entries if entry is not None and str(entry).strip()]


def file_name(value: Any) -> str:
    """A name that can be a file's."""
    name = "".join("_" if each in '\\/:*?"<>|' or ord(each) < 32 else each for each in str(value)).strip(". ")
    if not name:
        raise NotHere("it is no file name")
    return name
