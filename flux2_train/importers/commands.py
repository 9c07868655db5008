"""Command lines in shell, batch and text files, read as options and values. Nothing is ever run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

CONTINUED = re.compile(r"[ \t]*[\\^`][ \t]*\r?\n")
ASSIGNED = re.compile(r"^\s*(?:export\s+|set\s+|\$env:|\$)?\"?([A-Za-z_]\w*)\s*=\s*(.*?)\"?\s*$", re.IGNORECASE)
NAMED = re.compile(r"\$\{(\w+)\}|\$env:(\w+)|\$(\w+)|%(\w+)%")
COMMENT = re.compile(r"^\s*(#|::|rem\b|//)", re.IGNORECASE)
OPTION = re.compile(r"--?[A-Za-z]")


@dataclass(frozen=True)
class Command:
    """One call of a script: its name, its options, and the words before it (of ``accelerate launch``)."""

    script: str
    options: dict[str, Any]
    launcher: dict[str, Any]


def commands(text: str, scripts: Sequence[str]) -> list[Command]:
    """Every call in the text of a script whose file name begins with one of ``scripts``.

    Variables that the text itself sets are replaced by their text; others stay as they are written.
    """
    variables: dict[str, str] = {}
    found = []
    for line in CONTINUED.sub(" ", text).splitlines():
        if COMMENT.match(line):
            continue
        assigned = ASSIGNED.match(line)
        if assigned and not any(script in line for script in scripts):
            variables[assigned[1].lower()] = _replaced(assigned[2].strip().strip("'\""), variables)
        elif any(script in line for script in scripts):
            found.extend(_calls(_words(_replaced(line, variables)), scripts))
    return found


def _replaced(text: str, variables: dict[str, str]) -> str:
    def value(match: re.Match) -> str:
        name = next(filter(None, match.groups()))
        return variables.get(name.lower(), match[0])

    return NAMED.sub(value, text)


def _words(line: str) -> list[str]:
    """The words of a line. Backslashes are kept: in batch files they are part of paths."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    lexer.escape = "" if re.search(r"[A-Za-z]:\\|\.\\|\w\\\w", line) else "\\"
    try:
        return list(lexer)
    except ValueError as error:
        raise UserError(f"The command {line.strip()[:80]!r} cannot be read: {error}.") from error


def _calls(words: list[str], scripts: Sequence[str]) -> Iterator[Command]:
    for number, word in enumerate(words):
        name = re.split(r"[\\/]", word)[-1].removesuffix(".py")
        if any(name.startswith(script) for script in scripts):
            end = next((i for i, w in enumerate(words) if i > number and w in ("&&", ";", "|", "&")), len(words))
            yield Command(name, options(words[number + 1 : end]), options(words[:number]))
            return


def options(words: Sequence[str]) -> dict[str, Any]:
    """``--key value``, ``--key=value`` and ``--switch`` as a dict; several values make a list, no value ``True``.

    A key that comes twice keeps its last value, as argparse does. Words before the first option are left out.
    """
    found: dict[str, Any] = {}
    key = ""
    for word in words:
        if OPTION.match(word):
            key, equals, value = word.lstrip("-").partition("=")
            key = key.replace("-", "_")
            found[key] = value if equals else True
        elif key:
            before = found[key]
            found[key] = word if before is True else [*(before if isinstance(before, list) else [before]), word]
    return found
