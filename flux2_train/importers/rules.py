"""A rule says what becomes of one key of another trainer: the tables of the importers are made of these.

The same rules read a file and print docs/importing.md, so that the two cannot differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from .convert import flag, number
from .draft import NotHere, Section, display
from .report import EQUIVALENT, NOT_APPLICABLE, UNKNOWN, USED, Row

ABSENT = object()
OFF = (None, False, 0, 0.0, "", "none", "None", "no", "false", "False", "0", "0.0", [], {})


Take = Callable[[Any, Section], "str | None"]


class Differs(str):
    """Words of a rule that also say: the result differs from that trainer's."""


@dataclass(frozen=True)
class Rule:
    """What becomes of ``key``; ``[]`` in it stands for any number in brackets.

    ``take`` puts values into the section and may return words that follow ``why``; it raises NotHere for a value that
    has no counterpart. ``default`` is that trainer's value where its file lacks the key and ours would be another.
    ``off`` are values with which the key does nothing there either.
    """

    key: str
    verdict: str
    ours: str = ""
    why: str = ""
    take: Take | None = None
    default: Any = ABSENT
    off: Sequence[Any] = ()
    differs: bool = False


def used(key: str, place: str, convert: Callable[[Any], Any], why: str = "", default: Any = ABSENT) -> Rule:
    """The key means the same as our setting at ``place``."""
    return Rule(key, USED, place, why, _put(place, convert), default)


def turned(key: str, place: str, convert: Callable[[Any], Any], why: str, default: Any = ABSENT) -> Rule:
    """Our setting at ``place`` means the same after ``convert``; ``why`` names the convention."""
    return Rule(key, EQUIVALENT, place, why, _put(place, convert), default)


def special(key: str, ours: str, why: str, take: Take, default: Any = ABSENT) -> Rule:
    """The key becomes several settings, or depends on other keys."""
    return Rule(key, EQUIVALENT, ours, why, take, default)


def always(key: str, why: str) -> Rule:
    """What the key asks for is how this pack works anyway, or what an automatic choice here looks after."""
    return Rule(key, EQUIVALENT, "how it works here", why)


def needless(key: str, why: str) -> Rule:
    """The key has no counterpart, and the LoRA is none the worse for it."""
    return Rule(key, NOT_APPLICABLE, "", why)


def missing(key: str, why: str, off: Sequence[Any] = OFF, default: Any = ABSENT) -> Rule:
    """The key changes what is learned and has no counterpart; with a value in ``off`` it does nothing there either."""
    return Rule(key, NOT_APPLICABLE, "", why, None, default, off, True)


def each(make: Callable[..., Rule], keys: str, *words: Any, **named: Any) -> tuple[Rule, ...]:
    """The same rule for several keys, which are separated by spaces."""
    return tuple(make(key, *words, **named) for key in keys.split())


def refused(key: str, why: str, take: Callable[[Any], bool]) -> Rule:
    """A value for which ``take`` is true makes the whole file no job of ours."""

    def check(value: Any, section: Section) -> str | None:
        if take(value):
            section.block(f"{section.prefix}{section.key} is {str(value)[:60]!r}: {why}.")
            raise NotHere(why)
        return None

    return Rule(key, EQUIVALENT, "how it works here", why, check)


def _put(place: str, convert: Callable[[Any], Any]) -> Take:
    return lambda value, section: section.put(place, convert(value))


@cache
def _pattern(key: str, below: bool) -> re.Pattern:
    number = re.escape(key).replace(r"\[\]", r"\[\d+\]")
    return re.compile(number + (r"(?:[.\[].*)?" if below else "") + r"\Z", re.DOTALL)


def fits(rule: Rule, key: str) -> bool:
    """Whether the rule is for that key. One that takes no value is also for everything below its key."""
    return bool(_pattern(rule.key, rule.take is None).match(key))


def find(rules: Sequence[Rule], key: str) -> Rule | None:
    """The first rule for a key."""
    return next((rule for rule in rules if fits(rule, key)), None)


def apply(rules: Sequence[Rule], section: Section, defaults: bool = True) -> list[Row]:
    """A row for every key of the section, then one for each default of that trainer's that matters."""
    rows = [_row(find(rules, key), key, value, section) for key, value in section.values.items()]
    if defaults:
        given = [key for key, value in section.values.items() if value is not None]
        absent = [
            rule for rule in rules if rule.default is not ABSENT
            and find(rules, rule.key) is rule and not any(fits(rule, key) for key in given)
        ]  # fmt: skip
        rows += [_row(rule, rule.key, rule.default, section, absent=True) for rule in absent]
    return rows


def _row(rule: Rule | None, key: str, value: Any, section: Section, absent: bool = False) -> Row:
    row = partial(Row, section.prefix + key, value, absent=absent, part=section.prefix)
    if rule is None:
        return row(UNKNOWN, why="no key of that trainer that this pack knows; nothing was done with it")
    if value is None:
        return row(NOT_APPLICABLE, why="not set in the file")
    if rule.take is None:
        off = any(value is each or (value == each and type(value) is type(each)) for each in rule.off)
        why = f"off in the file; {rule.why}" if off else rule.why
        return row(rule.verdict, rule.ours, why, rule.differs and not off)
    section.key = key
    try:
        with section.recording() as put:
            more = rule.take(value, section)
    except NotHere as error:
        return row(NOT_APPLICABLE, "", str(error), True)
    ours = ", ".join(f"{place} = {display(now)}" for place, now in put) or rule.ours
    words = "; ".join(filter(None, (rule.why, more)))
    return row(_verdict(rule, value, put), ours, words, isinstance(more, Differs))


def _verdict(rule: Rule, value: Any, put: list[tuple[str, Any]]) -> str:
    """Used, if one setting has that very value now; equivalent to, if what was put is another value, or several."""
    if not put:
        return rule.verdict
    if len(put) > 1:
        return EQUIVALENT
    now = put[0][1]
    try:
        same = isinstance(now, (bool, str)) or number(value) == now
    except NotHere:
        same = False
    return USED if same and (not isinstance(now, (bool, str)) or _same(value, now)) else EQUIVALENT


def _same(value: Any, now: bool | str) -> bool:
    if isinstance(now, bool):
        try:
            return flag(value) == now
        except NotHere:
            return False
    return str(value).lower() == now.lower()
