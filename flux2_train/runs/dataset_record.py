"""A record of a run's data set, and how a data set differs from that record."""

from __future__ import annotations

import json
from pathlib import Path

from ..data.dataset import Dataset
from ..hashing import canonical_hash

NAMED = 3  # how many files a sentence names at most


def listed(dataset: Dataset) -> list[dict]:
    """Every image with its captions, the hash of its contents, and a hash of all that training uses of it."""
    return [
        {
            "image": str(item.path),
            "content": item.view.digest,
            "captions": list(item.captions),
            "all": canonical_hash(item.canonical()),
        }
        for item in dataset.items
    ]


def difference(path: Path, dataset: Dataset) -> str:
    """A clause that says what has changed since ``path`` was written from ``listed``, as far as it can be read."""
    try:
        was = {(each["image"], each["all"]) for each in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, KeyError, TypeError):
        return "the data set has changed"
    now = {(each["image"], each["all"]) for each in listed(dataset)}
    before, after = {name for name, _ in was - now}, {name for name, _ in now - was}
    parts = ((after - before, "new"), (before - after, "gone"), (before & after, "changed"))
    changes = [f"{len(names)} {what} ({_some(names)})" for names, what in parts if names]
    return f"the data set has changed: {', '.join(changes) or 'settings of its folders'}"


def _some(names: set[str]) -> str:
    shown = [Path(name).name for name in sorted(names)[:NAMED]]
    return ", ".join([*shown, "..."] if len(names) > NAMED else shown)
