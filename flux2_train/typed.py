"""Plain values (as JSON and TOML have them) into dataclasses and back, with a sentence for everything that is wrong."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path

from .errors import UserError

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def read(kind, value, where: str):
    """``value`` as ``kind``: a dataclass, a tuple, ``X | None``, bool, int, float, str or Path.

    Raises UserError naming ``where``, the dotted place of the value, for unknown keys and values of another type.
    """
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    if typing.get_origin(kind) is tuple:
        return _tuple(typing.get_args(kind), value, where)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        (inner,) = (k for k in typing.get_args(kind) if k is not type(None))
        return None if value is None else read(inner, value, where)
    return _scalar(kind, value, where)


def plain(value):
    """Inverse of ``read``: dicts, lists and scalars only."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _dataclass(kind: type, value, where: str):
    if not isinstance(value, dict):
        raise UserError(f"{where} is {value!r}; it must be a group of settings.")
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    for key in value:
        if key not in fields:
            raise UserError(f"{_join(where, key)} is no setting; {_suggestion(key, list(fields))}.")
    required = (dataclasses.MISSING, dataclasses.MISSING)
    missing = [n for n, f in fields.items() if n not in value and (f.default, f.default_factory) == required]
    if missing:
        raise UserError(f"{_join(where, missing[0])} is missing; say what it is.")
    kinds = typing.get_type_hints(kind)
    return kind(**{key: read(kinds[key], each, _join(where, key)) for key, each in value.items()})


def _tuple(kinds: tuple, value, where: str) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{where} is {value!r}; it must be a list.")
    if kinds[1:] == (...,):
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise UserError(f"{where} has {len(value)} entries; it needs {len(kinds)}.")
    return tuple(read(k, v, f"{where}.{i}") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))


def _scalar(kind: type, value, where: str):
    if kind is float and type(value) is int:
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if type(value) is not kind:
        raise UserError(f"{where} is {value!r}; it must be {WORDS[kind]}.")
    return value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def _suggestion(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(str(key), known, 1)
    return f"did you mean {near[0]!r}" if near else f"there are {', '.join(known)}"
