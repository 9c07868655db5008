"""Regular expressions from LoRA files, matched in linear time, so that no file can make the process hang.

peft's ``rank_pattern`` and ``alpha_pattern`` are regular expressions, and Python's own matching takes exponential time
for some of them. This module supports literals, ``.``, ``\\d``, groups, each of these followed by ``*``, ``+`` or
``?``, and ``|`` and anchors. It simulates all states at once (Thompson 1968). Anything else is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

MOST_WORK, EACH = 10_000_000, 20  # work: (letters of an expression + 20) times letters of a name; a few seconds a file
MOST = 500  # expressions in one dictionary
LONGEST, DEEPEST = 2000, 20  # letters of an expression, depth of nested groups
_NAME = re.compile(r"\^?[\w.\\-]+\$?")
ANY, DIGIT = "any", "digit"


class Unreadable(ValueError):
    """An expression that this module does not support."""


@dataclass
class Patterns:
    """A dictionary of expressions, of which the first that matches counts: ``(.*\\.)?(expression)$``, as in peft.

    An expression that is a plain layer name, escaped or not, is found by one look-up; the dots in it are dots.
    """

    values: dict[str, float]
    work: int = 0

    def of(self, name: str, default: float) -> float:
        """The value for a layer's dotted name. Raises Unreadable naming the expression."""
        ends = [name[place + 1 :] for place, letter in enumerate(name) if letter == "."] + [name, f"^{name}"]
        plain = min((self._names[end] for end in ends if end in self._names), default=None)
        for place, expression in self._expressions:
            if plain is not None and plain[0] < place:
                break
            self._count((len(expression.source) + EACH) * len(name))
            if expression.ends(name):
                return list(self.values.values())[place]
        return default if plain is None else plain[1]

    @cached_property
    def _names(self) -> dict[str, tuple[int, float]]:
        """Place and value of the expressions that are plain names, by name; an anchored one begins with ``^``."""
        by_name: dict[str, tuple[int, float]] = {}
        for place, (source, value) in enumerate(self.values.items()):
            name = _as_name(source)
            if name is not None:
                by_name.setdefault(name, (place, value))
        return by_name

    @cached_property
    def _expressions(self) -> list[tuple[int, Expression]]:
        sources = [(place, source) for place, source in enumerate(self.values) if _as_name(source) is None]
        if len(sources) > MOST:
            raise Unreadable(f"{len(sources)} expressions such as {sources[0][1][:40]!r}")
        return [(place, Expression(source)) for place, source in sources]

    def _count(self, work: int) -> None:
        self.work += work
        if self.work > MOST_WORK:
            raise Unreadable(f"{len(self._expressions)} expressions such as {self._expressions[0][1].source!r}")


def _as_name(source: str) -> str | None:
    if not _NAME.fullmatch(source) or re.search(r"\\[^.\\_-]", source):
        return None
    return source.removesuffix("$").replace("\\", "")


@dataclass(frozen=True)
class _State:
    """A state of the automaton: which letter it takes and which states follow; without a letter they follow at once."""

    letter: str | None
    following: list[int] = field(default_factory=list)


class Expression:
    """One expression as an automaton. Raises Unreadable for an expression that is not supported."""

    def __init__(self, source: str):
        self.source, self.place, self.depth = source, 0, 0
        self.states: list[_State] = []
        if len(source) > LONGEST:
            raise Unreadable(f"{source[:40]!r}... of {len(source)} letters")
        self.anchored = source.startswith("^")
        self.place = 1 if self.anchored else 0
        self.start, ends = self._alternatives()
        if self.place != len(source):
            self._refuse()
        self.final = self._state(None)
        self._lead(ends, self.final)

    def ends(self, name: str) -> bool:
        """Whether it matches the whole name, or, unless anchored, what follows one of its dots."""
        now, last = self._reached({self.start}), -1 if self.anchored else name.rfind(".")
        for place, letter in enumerate(name):
            following = {to for state in now if self._takes(state, letter) for to in self.states[state].following}
            if letter == "." and not self.anchored:
                following.add(self.start)
            now = self._reached(following) if following else following
            if not now and place > last:
                return False
        return self.final in now

    def _takes(self, state: int, letter: str) -> bool:
        wanted = self.states[state].letter
        return wanted in (ANY, letter) or (wanted == DIGIT and letter.isdecimal())

    def _reached(self, states: set[int]) -> set[int]:
        """These states and all that follow them without taking a letter."""
        reached, open_ = set(), list(states)
        while open_:
            state = open_.pop()
            if state not in reached:
                reached.add(state)
                if self.states[state].letter is None:
                    open_.extend(self.states[state].following)
        return reached

    def _state(self, letter: str | None) -> int:
        self.states.append(_State(letter))
        return len(self.states) - 1

    def _lead(self, ends: list[int], to: int) -> None:
        for end in ends:
            self.states[end].following.append(to)

    def _alternatives(self) -> tuple[int, list[int]]:
        """The first state and the open ends of ``a|b|c``."""
        fork, ends = self._state(None), []
        for _ in self._separated():
            start, open_ = self._sequence()
            self._lead([fork], start)
            ends += open_
        return fork, ends

    def _separated(self) -> Iterator[None]:
        yield
        while self._next() == "|":
            if self.anchored and not self.depth:  # the anchor would apply to the first alternative only
                self._refuse()
            self.place += 1
            yield

    def _sequence(self) -> tuple[int, list[int]]:
        start = self._state(None)
        ends = [start]
        while self._next() not in ("", "|", ")"):
            if self._next() == "$" and self.place == len(self.source) - 1:
                self.place += 1
                break
            first, open_ = self._repeated(*self._atom())
            self._lead(ends, first)
            ends = open_
        return start, ends

    def _repeated(self, first: int, ends: list[int]) -> tuple[int, list[int]]:
        sign = self._next()
        if sign not in ("*", "+", "?"):
            return first, ends
        self.place += 1
        if self._next() in ("*", "+", "?", "{"):
            self._refuse()
        fork = self._state(None)
        self._lead([fork], first)
        if sign == "?":
            return fork, [*ends, fork]
        self._lead(ends, fork)
        return (fork if sign == "*" else first), [fork]

    def _atom(self) -> tuple[int, list[int]]:
        letter = self._next()
        self.place += 1
        if letter == "(":
            return self._group()
        if letter == ".":
            state = self._state(ANY)
        elif letter == "\\":
            state = self._state(self._escaped())
        elif letter in "[]{}*+?^$":
            self._refuse()
        else:
            state = self._state(letter)
        return state, [state]

    def _escaped(self) -> str:
        letter = self._next()
        self.place += 1
        if letter == "d":
            return DIGIT
        if not letter or letter.isalnum():
            self._refuse()
        return letter

    def _group(self) -> tuple[int, list[int]]:
        if self.source.startswith("?:", self.place):
            self.place += 2
        elif self._next() == "?":
            self._refuse()
        self.depth += 1
        if self.depth > DEEPEST:
            self._refuse()
        group = self._alternatives()
        self.depth -= 1
        if self._next() != ")":
            self._refuse()
        self.place += 1
        return group

    def _next(self) -> str:
        return self.source[self.place : self.place + 1]

    def _refuse(self):
        raise Unreadable(repr(self.source))
