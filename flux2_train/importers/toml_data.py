"""What the data set files of musubi-tuner and kohya have in common: three levels, sizes, buckets, batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from . import reading
from .common import area_side
from .convert import flag, whole
from .draft import Draft, NotHere, Section
from .report import NOT_APPLICABLE, Row
from .rules import Differs, Rule, apply

READ_ENDINGS = ("txt", "caption", "json")


def sides(value: Any) -> tuple[int, int]:
    """(width, height) of a resolution that is one number, two, or a text of them."""
    words = value if isinstance(value, (list, tuple)) else str(value).replace(",", " ").split()
    numbers = [whole(word) for word in words]
    if not 1 <= len(numbers) <= 2:
        raise NotHere("it is no resolution; write one number or two")
    return numbers[0], numbers[-1]


def resolution(value: Any, section: Section) -> str | None:
    """A resolution is an area. Without buckets every picture is cut to that one shape."""
    width, height = sides(value)
    section.put("dataset.resolution", area_side(width, height))
    if not flag(section.get("enable_bucket", False)):
        section.put("dataset.crop_options.aspects", [width / height])
        return "without enable_bucket every picture is cut to that shape"
    return "the area counts" if width != height else None


def buckets(value: Any, section: Section) -> str:
    """Buckets are always on here; without them there is one shape."""
    return "the closest of all buckets" if flag(value) else "one shape: see resolution"


def no_upscale(value: Any, section: Section) -> None:
    """The opposite of ``upscale``."""
    section.put("dataset.crop_options.upscale", not flag(value))


def ending(value: Any, section: Section) -> str | None:
    """Text files beside the pictures."""
    section.put("dataset.captions", "text file")
    if str(value).lstrip(".") not in READ_ENDINGS:
        return Differs("only .txt, .caption and .json are read here; rename the files")
    return None


def batch(value: Any, section: Section) -> str | None:
    """The run's batch size is that of the first data set; others have their own."""
    before = section.ours("training.batch")
    if before is None:
        section.put("training.batch", whole(value))
    elif before != whole(value):
        section.put("dataset.batch", whole(value))
        return "dataset.batch of this data set, beside the first one's"
    return None


class Levels:
    """Rows for keys that inner levels inherit: each key has one row, from a data set in which its value counts."""

    def __init__(self, rules: Sequence[Rule], draft: Draft):
        self.rules, self.draft, self.rows = rules, draft, []
        self.given: dict[str, dict[str, Any]] = {}  # the keys of each level by its prefix
        self.with_row: set[str] = set()  # whole keys that have a row

    def add(self, *levels: tuple[str, Mapping[str, Any]]) -> None:
        """A data set more. ``levels`` are prefix and keys of those that it inherits, and at last its own."""
        values: dict[str, Any] = {}
        for prefix, own in levels:
            values.update(own)
            self.given[prefix] = dict(own)
        for row in apply(self.rules, self.draft.section(values, levels[-1][0], self.draft.new_dataset())):
            owner = next((prefix for prefix, own in reversed(levels) if row.short in own), levels[-1][0])
            key = owner + row.short
            if row.absent or key not in self.with_row:
                self.with_row.add(key)
                self.rows.append(replace(row, key=key, part=owner))

    def finished(self) -> list[Row]:
        """All rows, level by level as in the file; a key that counts in no data set has one too."""
        why = "every data set below says otherwise, or there is none"
        unused = [
            Row(prefix + key, value, NOT_APPLICABLE, why=why, part=prefix)
            for prefix, own in self.given.items() for key, value in own.items() if prefix + key not in self.with_row
        ]  # fmt: skip
        order = list(self.given)
        return sorted([*self.rows, *unused], key=lambda row: order.index(row.part))


def flat(values: Any, without: str = "") -> dict[str, Any]:
    """The values of one level by key, without the lists below it."""
    return {
        key: each for key, each in reading.leaves(values if isinstance(values, dict) else {}).items()
        if not (without and key.partition("[")[0].partition(".")[0] == without)
    }  # fmt: skip
