"""Lists that users write as one line of text: ``1, 0.5``, ``1:1, 3:2``, ``double_blocks=0.5``, ``10..20=0.25``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo

from ..errors import UserError
from ..names import shown

Argument = bool | int | float | str
MOST = 1000  # entries of a list
REGULAR = set("()|^$+{}\\")  # what regular expressions have and globs have not


def numbers(text: str, name: str) -> tuple[float, ...]:
    """The numbers in a text such as ``1, 0.5``. Raises UserError for anything else in it."""
    try:
        return tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError as error:
        raise UserError(
            f"{name} is {shown(text)!r}; it takes numbers with commas between them, such as 1, 0.5."
        ) from error


def ratios(text: str, name: str) -> tuple[float, ...]:
    """The numbers and ratios in a text such as ``1:1, 3:2, 0.75``. Raises UserError for anything else in it."""
    return tuple(_ratio(word, name) for word in text.replace(",", " ").replace(";", " ").split())


def _ratio(word: str, name: str) -> float:
    try:
        top, _, below = word.replace("/", ":").partition(":")
        return float(top) / float(below or 1)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{name} has {shown(word)!r}, which is no number; write them as 512, 768 or 1:1, 3:2."
        ) from error


def rates(text: str, name: str = "block_rates") -> tuple[tuple[str, float], ...]:
    """The pairs in a text such as ``double_blocks.*=0.5, *mlp*=0``. Raises UserError for anything else in it."""
    pairs = [word.rpartition("=") for word in text.split(",") if word.strip()]
    try:
        parsed = tuple((pattern.strip(), float(rate)) for pattern, _, rate in pairs)
    except ValueError as error:
        raise UserError(f"{name} is {shown(text)!r}; it takes pairs such as double_blocks.*=0.5, *mlp*=0.") from error
    if any(set(pattern) & REGULAR for pattern, _ in parsed):
        raise UserError(
            f"{name} is {shown(text)!r}; its patterns are no regular expressions: write names with *, such as "
            "double_blocks.*=0.5, *mlp*=0."
        )
    if not all(pattern for pattern, _ in parsed):
        raise UserError(f"{name} is {shown(text)!r}; every factor needs a layer name before its '='.")
    return parsed


def routes(text: str, name: str) -> tuple[tuple[int, int, float], ...]:
    """(start, end, ratio) of each route in a text such as ``10..20=0.25``. Raises UserError for anything else in it."""
    return tuple(_route(word.strip(), name) for word in text.replace(";", ",").split(",") if word.strip())


def _route(word: str, name: str) -> tuple[int, int, float]:
    blocks, _, ratio = word.partition("=")
    start, _, end = blocks.partition("..")
    try:
        return int(start), int(end), float(ratio)
    except ValueError as error:
        raise UserError(f"{name} has {word!r}; a route is written as 10..20=0.25: blocks and fraction.") from error


def arguments(text: str, name: str) -> tuple[tuple[str, Argument], ...]:
    """The pairs in a text such as ``momentum=0.9, nesterov=true``. Raises UserError for anything else in it."""
    return tuple(_argument(word, name) for word in text.split(",") if word.strip())


def _argument(word: str, name: str) -> tuple[str, Argument]:
    argument, equals, value = (part.strip() for part in word.partition("="))
    if not equals or not argument.isidentifier() or not value:
        raise UserError(f"{name} has {shown(word.strip())!r}; it takes pairs such as momentum=0.9, nesterov=true.")
    if value.lower() in ("true", "false"):
        return argument, value.lower() == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return argument, kind(value)
    return argument, value


def folders(text: str, name: str) -> tuple[Path, ...]:
    """The folders in a text such as ``before; depth``."""
    return tuple(Path(folder.strip()) for folder in text.split(";") if folder.strip())


def written(values: tuple) -> str:
    """A list as text, as the widget takes it; inverse of the functions above."""
    if values and isinstance(values[0], Path):
        return "; ".join(map(str, values))
    if values and isinstance(values[0], tuple) and len(values[0]) == 3:
        return ", ".join(f"{start}..{end}={ratio:g}" for start, end, ratio in values)
    return ", ".join("=".join(map(_word, v)) if isinstance(v, tuple) else f"{v:g}" for v in values)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def parsed_by(parse: Callable[[str, str], tuple]) -> BeforeValidator:
    """A validator that also accepts a list as text; its error names the field."""

    def read(value: Any, info: ValidationInfo) -> Any:
        entries = parse(value, info.field_name or "") if isinstance(value, str) else value
        if isinstance(entries, list | tuple) and len(entries) > MOST:
            raise UserError(f"{info.field_name} has {len(entries)} entries; at most {MOST} are taken.")
        return entries

    return BeforeValidator(read)


Numbers = Annotated[tuple[float, ...], parsed_by(numbers)]
Ratios = Annotated[tuple[float, ...], parsed_by(ratios)]
Rates = Annotated[tuple[tuple[str, float], ...], parsed_by(rates)]
Routes = Annotated[tuple[tuple[int, int, float], ...], parsed_by(routes)]
Folders = Annotated[tuple[Path, ...], parsed_by(folders)]
Arguments = Annotated[tuple[tuple[str, Argument], ...], parsed_by(arguments)]
