"""What became of every key of another trainer's file: one row for each, and the table of them."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

USED, EQUIVALENT, NOT_APPLICABLE, UNKNOWN = "used as", "equivalent to", "not applicable", "unknown"
VERDICTS = (USED, EQUIVALENT, NOT_APPLICABLE, UNKNOWN)
LONGEST_VALUE = 24  # characters of a value in the table
KEY_WIDTH, VALUE_WIDTH, WIDTH = 44, 26, 76  # characters of the columns; longer keys push the rest of their line


@dataclass(frozen=True)
class Row:
    """One key and what became of it.

    ``part``: the part of the file, which ``key`` begins with. ``ours``: the settings that it became, or what stands in
    its place. ``differs``: because of it the result is not that trainer's. ``absent``: the file does not have the key;
    ``value`` is that trainer's default.
    """

    key: str
    value: Any
    verdict: str
    ours: str = ""
    why: str = ""
    differs: bool = False
    absent: bool = False
    part: str = ""

    @property
    def short(self) -> str:
        """The key within its part."""
        return self.key.removeprefix(self.part)

    @property
    def text(self) -> str:
        """The verdict with what it refers to and the reason, as one sentence."""
        fate = f"{self.verdict} {self.ours}" if self.ours and self.verdict != NOT_APPLICABLE else self.verdict
        if self.why.startswith("yet: "):
            return f"{fate} {self.why}"
        return f"{fate}: {self.why}" if self.why else fate


def counts(rows: Iterable[Row]) -> dict[str, int]:
    """How many keys of the file have each verdict. Defaults of keys that the file does not have are not counted."""
    found = Counter(row.verdict for row in rows if not row.absent)
    return {verdict: found[verdict] for verdict in VERDICTS}


def table(rows: Iterable[Row]) -> str:
    """The rows as a table of plain text. A ``!`` marks what makes the result differ from that trainer's.

    The keys of one part of a file stand together, under the part's name.
    """
    rows = list(rows)
    width = min(KEY_WIDTH, max((len(row.short) for row in rows), default=0))
    lines, part = [_line("", "key", "value", "what became of it", width)], ""
    for row in rows:
        lines += [f"{row.part.rstrip('.: ')}:"] * (row.part != part and row.part != "")
        part = row.part
        value = shown(row.value) + (" (default)" if row.absent else "")
        lines.append(_line("!" if row.differs else "", row.short, value, row.text, width))
    return "\n".join(lines)


def _line(mark: str, key: str, value: str, text: str, width: int) -> str:
    first, *more = textwrap.wrap(text, WIDTH, break_long_words=False) or [""]
    margin = " " * (width + VALUE_WIDTH + 6)
    start = f"{mark:1} {key:{width}}  {value:{VALUE_WIDTH}}  "
    return "\n".join([start + first, *(margin + line for line in more)])


def shown(value: Any) -> str:
    """A value in a few characters, on one line."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
