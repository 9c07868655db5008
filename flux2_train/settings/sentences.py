"""pydantic's errors as sentences for the user."""

from __future__ import annotations

import difflib
import types
import typing
from typing import Any

from annotated_types import Ge, Le
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ..names import shown

TYPES = {
    "bool_type": "true or false", "int_type": "a whole number", "float_type": "a number", "string_type": "a text",
    "path_type": "a path", "tuple_type": "a list", "dataclass_type": "a group of settings",
    "finite_number": "a finite number",
}  # fmt: skip
LONGEST = 200  # characters of a wrong value that are repeated
FEW = 8  # entries of a list that is repeated


def sentence(error: ValidationError, kind: type, where: str = "") -> str:
    """One sentence on the first thing that is wrong: the setting's place and value, and what it may be."""
    first = error.errors(include_url=False)[0]
    place, value = first["loc"], first["input"]
    name = ".".join(map(str, [*([where] if where else []), *place])) or "The value"
    match first["type"]:
        case "value_error":
            return str(first["ctx"]["error"])
        case "missing" | "missing_argument":
            return f"{name} is missing; say what it is."
        case "unexpected_keyword_argument" | "extra_forbidden":
            return (
                f"{name} is no setting; {_suggestion(str(place[-1]), list(_at(kind, place[:-1]).__pydantic_fields__))}."
            )
        case "literal_error":
            return f"{name} is {_shown(value)}; choose one of {', '.join(typing.get_args(_at(kind, place)))}."
        case "greater_than_equal" | "less_than_equal":
            return f"{name} is {_number(value)}; it must be {_limits(_field(kind, place))}."
        case other:
            return f"{name} is {_shown(value)}; it must be {TYPES.get(other, first['msg'])}."


def _number(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e300 else "a number of too many digits"


def _field(kind: Any, place: tuple) -> FieldInfo:
    """The field that a value was meant for."""
    return _at(kind, place[:-1]).__pydantic_fields__[place[-1]]


def _at(kind: Any, place: tuple) -> Any:
    """The type at a place: of a field, or of an entry of a list."""
    kind = _plain_type(kind)
    if not place:
        return kind
    if isinstance(place[0], int):
        return _at(typing.get_args(kind)[0], place[1:])
    return _at(kind.__pydantic_fields__[place[0]].annotation, place[1:])


def _plain_type(kind: Any) -> Any:
    """The type without its annotations and without None."""
    if typing.get_origin(kind) is typing.Annotated:
        return _plain_type(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return _plain_type(next(each for each in typing.get_args(kind) if each is not type(None)))
    return kind


def bounds(field: FieldInfo) -> tuple[float | None, float | None]:
    """(least, most) of a field, None where there is no limit."""
    least = next((bound.ge for bound in field.metadata if isinstance(bound, Ge)), None)
    return least, next((bound.le for bound in field.metadata if isinstance(bound, Le)), None)


def _limits(field: FieldInfo) -> str:
    least, most = bounds(field)
    words = [f"at least {least:g}"] if least is not None else []
    return " and ".join([*words, f"at most {most:g}"] if most is not None else words)


def _suggestion(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    return f"did you mean {near[0]!r}" if near else f"there are {', '.join(known)}"


def _shown(value: Any) -> str:
    """The value as text; a list or an object only by its kind, as it may be of any size."""
    if isinstance(value, dict | list | tuple) and len(value) > FEW:
        return f"a {type(value).__name__} of {len(value)}"
    return shown(value, LONGEST).join("''") if isinstance(value, str) else shown(repr(value), LONGEST)
