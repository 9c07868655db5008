"""A record of a run's data set, and how a data set differs from that record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ..bounded import read_text
from ..data.dataset import Dataset
from ..hashing import canonical_hash
from ..train.trainer import Trainer
from .folder import RunFolder

NAMED = 3  # how many files a sentence names at most
MOST_BYTES = 1 << 28  # of dataset.json: a few hundred bytes for each image and caption


def listed(dataset: Dataset) -> list[dict]:
    """Every image with its captions, the hash of its contents, and a hash of all that training uses of it.

    Images that flux2_dataset.json leaves out are listed behind them.
    """
    return [
        {
            "image": str(item.path),
            "content": item.view.digest,
            "captions": list(item.captions),
            **({"repeats": item.repeats} if item.repeats != 1 else {}),
            "all": canonical_hash(item.canonical()),
        }
        for item in dataset.items
    ] + [{"image": str(path), "excluded": True} for path in dataset.excluded]


def since_last(trainer: Trainer, runs: Path) -> Iterator[str]:
    """What has changed in the data set since the last run of the same name, if anything has."""
    last = RunFolder.last(runs, trainer.config.name)
    changed = last and since(last.dataset, trainer.dataset)
    if changed:
        yield f"Since the run {last.name} the data set has changed: {changed}."


def difference(path: Path, dataset: Dataset) -> str:
    """A clause that says what has changed since ``path`` was written from ``listed``, as far as it can be read."""
    try:
        was = _states(json.loads(read_text(path, MOST_BYTES)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "the data set has changed"
    return f"the data set has changed: {changes(was, _states(listed(dataset))) or 'settings of its folders'}"


def since(path: Path, dataset: Dataset) -> str:
    """What has changed in the images since ``path`` was written; empty if nothing has, or if it cannot be read."""
    try:
        return changes(_states(json.loads(read_text(path, MOST_BYTES))), _states(listed(dataset)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def _states(records: list[dict]) -> dict[str, set[str]]:
    """What training uses of each image, by its path: hashes, one for each crop; empty for an image that is left out."""
    states: dict[str, set[str]] = {}
    for each in records:
        states.setdefault(each["image"], set()).update(() if each.get("excluded") else (each["all"],))
    return states


def changes(was: dict[str, set[str]], now: dict[str, set[str]]) -> str:
    """The differences between two states of a data set in words, with the first names of each kind."""
    both = {name for name in was.keys() & now.keys() if was[name] != now[name]}
    out, back = {name for name in both if not now[name]}, {name for name in both if not was[name]}
    kinds = (
        (now.keys() - was.keys(), "new"), (was.keys() - now.keys(), "gone"), (out, "left out"), (back, "put back"),
        (both - out - back, "changed"),
    )  # fmt: skip
    return ", ".join(f"{len(names)} {what} ({_some(names)})" for names, what in kinds if names)


def _some(names: set[str]) -> str:
    shown = [Path(name).name for name in sorted(names)[:NAMED]]
    return ", ".join([*shown, "..."] if len(names) > NAMED else shown)
