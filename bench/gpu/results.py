"""The file that rows are written to, one by one, and rows as lines of text."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from flux2_train.atomic import write_text

FOLDER = Path(__file__).resolve().parents[1] / "results"
GB = 1e9
NUMBERS = (  # of a row, as they are shown, and their unit
    ("error", "{:.2e} off", 1), ("bound", "(allowed {:.0e})", 1), ("seconds", "{:.3f} s/step", 1),
    ("planned_seconds", "(planned {:.3f} s)", 1), ("of_products", "{:.0%} of the matrix rate", 1),
    ("peak", "{:.2f} GB", GB), ("planned_peak", "(planned {:.2f})", GB), ("traffic", "{:.2f} GB over the bus", GB),
)  # fmt: skip


class Results:
    """All rows of one card. ``facts`` say which; with ``keep`` the rows that its file holds already stay.

    ``waiting`` are the names of the rows that this call is to measure, ``begun`` of those that it has measured. What is
    waiting is in the file from the beginning, whatever ends the process.
    """

    def __init__(self, facts: dict, path: Path | None = None, keep: bool = False, waiting: Iterable[str] = ()):
        self.path = path or FOLDER / f"gpu_{slug(facts)}.json"
        self.facts, self.waiting, self.begun = facts, list(waiting), set()
        self.rows, self.older = self._old(facts) if keep else ({}, [])
        self._write()

    @property
    def not_reached(self) -> list[str]:
        """The rows for which there was no time yet, in this call and in those before it whose rows were kept."""
        asked = [name for name in self.waiting if name not in self.begun]
        cut = [name for name, row in self.rows.items() if "not_done" in row]
        older = [name for name in self.older if name not in self.rows]
        return list(dict.fromkeys([*asked, *cut, *older]))

    def _old(self, facts: dict) -> tuple[dict, list[str]]:
        try:
            found = json.loads(self.path.read_text())
            same = found["facts"]["card"].get("name") == facts["card"].get("name")
            return (dict(found["rows"]), list(found["not_reached"])) if same else ({}, [])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}, []

    def add(self, name: str, found: dict) -> None:
        """Write a row down. Where that cannot be done, say so: the row is printed too, and the next is tried again."""
        self.rows.pop(name, None)
        self.rows[name] = found
        self.begun.add(name)
        try:
            self._write()
        except OSError as error:
            print(f"{self.path.name} could not be written: {error}", file=sys.stderr)

    def _write(self) -> None:
        content = {"measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "facts": self.facts,
                   "rows": self.rows, "not_reached": self.not_reached}  # fmt: skip
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(content, indent=1) + "\n")

    def line(self, name: str) -> str:
        """A row as text."""
        return f"{name:28} {' '.join(_words(self.rows[name]))}"

    def summary(self) -> str:
        """What went wrong, what was not reached and how to measure it, and where all of it is."""
        bad = [name for name in self.rows if name in self.begun
               and ("failed" in self.rows[name] or self.rows[name].get("right") is False)]  # fmt: skip
        lines = [f"\n{len(self.begun) - len(bad)} of {len(self.begun)} rows went well."]
        lines += [f"Went wrong: {', '.join(bad)}"] if bad else []
        if self.not_reached:
            lines.append(f"Not reached: python -m bench.gpu --rows {' '.join(self.not_reached)}")
        return "\n".join([*lines, f"Written to {self.path.name}."])


def slug(facts: dict) -> str:
    """The card's name as part of a file's."""
    name = facts["card"].get("name") or facts["card"]["type"]
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def shown(facts: dict) -> Iterator[str]:
    """What the rows are measured on, in lines."""
    card, versions = facts["card"], facts["versions"]
    yield f"{card.get('name', 'no card: a dry run on the processor')}, computes in {card['computes_in']}"
    yield ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if "dynamic_vram" in card:
        yield f"dynamic VRAM {'on' if card['dynamic_vram'] else 'off: ' + card['why_no_dynamic_vram']}"
        yield f"allocator {card['allocator']} {card['why_other_allocator']}".rstrip()
    if facts.get("replaced"):
        yield f"not installed, and replaced by what raises an error when it is used: {', '.join(facts['replaced'])}"
    yield ""


def _words(row: dict) -> Iterator[str]:
    for name, text in (("failed", "FAILED"), ("not_done", "left out:"), ("refused", "refused:"), ("absent", "absent:")):
        if name in row:
            yield f"{text} {row[name]}"
            return
    if "right" in row:
        yield "right" if row["right"] else "WRONG"
    for name, text, unit in NUMBERS:
        if row.get(name) is not None:
            yield text.format(row[name] / unit)
    if "peaks" in row:
        pairs = zip(row["peaks"], row["planned_peaks"], strict=True)
        yield "on each card " + ", ".join(f"{peak / GB:.2f} GB (planned {planned / GB:.2f})" for peak, planned in pairs)
    yield from (str(row[name]) for name in ("layout", "products", "attention", "words") if row.get(name))
    if row.get("warnings"):
        yield f"warned: {' / '.join(row['warnings'])}"
