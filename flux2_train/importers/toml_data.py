"""What the data set files of musubi-tuner and kohya have in common: three levels, sizes, buckets, batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import reading
from .common import area_side
from .convert import flag, whole
from .draft import Draft, NotHere, Section
from .report import Row
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
    """One batch size for all data sets."""
    before = section.ours("training.batch")
    if before is not None and before != whole(value):
        return Differs(f"one batch size for all data sets: {before}")
    section.put("training.batch", whole(value))
    return None


def general_rows(rules: Sequence[Rule], general: Mapping[str, Any], draft: Draft, prefix: str) -> list[Row]:
    """Rows for the keys that stand for every data set; what they set goes into each data set later."""
    scratch = Draft(draft.path)
    return apply(rules, scratch.section(general, prefix, {}), defaults=False)


def own_rows(rules: Sequence[Rule], levels: Sequence[Mapping[str, Any]], draft: Draft, prefix: str) -> list[Row]:
    """Rows for one data set's own keys. ``levels`` are its keys after those that it inherits, the outermost first."""
    values: dict[str, Any] = {}
    for level in levels:
        values.update(level)
    rows = apply(rules, draft.section(values, prefix, draft.new_dataset()))
    return [row for row in rows if row.absent or row.short in levels[-1]]


def flat(values: Any, without: str = "") -> dict[str, Any]:
    """The values of one level by key, without the lists below it."""
    return {
        key: each for key, each in reading.leaves(values if isinstance(values, dict) else {}).items()
        if not (without and key.partition("[")[0].partition(".")[0] == without)
    }  # fmt: skip
