"""A setting: a field that pydantic checks, with its limits, its help text and the look of its widget."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked
from pydantic.fields import FieldInfo

from ..errors import UserError
from .sentences import bounds, sentence

Kind = TypeVar("Kind")
EXACT = (bool, int, float, str)  # types that are not converted: "5" is no 5, true is no 1
RARE = {"advanced": True, "optional": True}  # widgets of settings that few people change


@dataclass(frozen=True)
class Widget:
    """How a node shows a setting. ``advanced`` hides it until unfolded.

    ``control`` adds "control after generate": True, or the choice that it starts with; False leaves it out.
    """

    step: float | None = None
    advanced: bool = False
    optional: bool = False
    multiline: bool = False
    round: bool = True
    control: bool | str | None = None


def setting(default: Any, help: str, *, ge: float | None = None, le: float | None = None, **widget: Any) -> Any:
    """A field with its default, its one help text, its limits (both included), and how its widget looks."""
    return Field(default, ge=ge, le=le, description=help, json_schema_extra={"widget": Widget(**widget)})


class Settings:
    """The base of every class of settings."""

    def problems(self) -> Iterator[str]:
        """One sentence for each combination of settings that makes no sense."""
        yield from ()

    def __post_init__(self) -> None:
        for problem in self.problems():
            raise UserError(problem)


def settings(kind: type[Kind]) -> type[Kind]:
    """Turn a class into a frozen dataclass that checks its values; its UserError names the first wrong one."""
    kind.__annotations__ = {name: _exact(hint) for name, hint in _own_hints(kind).items()}
    validated = checked(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))(kind)
    validating = validated.__init__

    @functools.wraps(validating)
    def init(self: Any, *values: Any, **named: Any) -> None:
        try:
            validating(self, *values, **named)
        except ValidationError as error:
            raise UserError(sentence(error, validated)) from None

    validated.__init__ = init
    return validated


def _own_hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in inspect.get_annotations(kind)}


def _exact(hint: Any) -> Any:
    """The type with every plain type in it made strict, so that pydantic converts nothing."""
    if hint in EXACT:
        return Annotated[hint, Strict()]
    if typing.get_origin(hint) is Annotated:
        inner, *notes = typing.get_args(hint)
        return Annotated[(_exact(inner), *notes)]
    if typing.get_origin(hint) is tuple:
        return tuple[tuple(each if each is ... else _exact(each) for each in typing.get_args(hint))]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return typing.Union[tuple(_exact(inner) for inner in typing.get_args(hint))]  # noqa: UP007
    return hint


def info(kind: type, name: str) -> FieldInfo:
    """What pydantic knows about a field: annotation, limits, default, description."""
    return kind.__pydantic_fields__[name]


def names(kind: type) -> list[str]:
    """Names of the fields that are settings, without the sections."""
    return [name for name, field in kind.__pydantic_fields__.items() if field.description]


def limits(kind: type, name: str) -> tuple[float | None, float | None]:
    """(least, most) of a setting, None where there is no limit."""
    return bounds(info(kind, name))


def choices(kind: type, name: str) -> tuple[str, ...]:
    """The values that a setting can have, empty if it is not a choice."""
    hint = info(kind, name).annotation
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def widget(kind: type, name: str) -> Widget:
    """How a node shows a setting."""
    return info(kind, name).json_schema_extra["widget"]


@functools.cache
def _adapter(kind: type) -> TypeAdapter:
    return TypeAdapter(kind)


def read(kind: type[Kind], values: Any, where: str = "") -> Kind:
    """Settings from plain values, as JSON and TOML have them. Raises UserError that names the wrong setting."""
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        raise UserError(sentence(error, kind, where)) from None


def plain(value: Any) -> Any:
    """The inverse of ``read``: settings as dicts, lists and scalars."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
