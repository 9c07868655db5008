"""Variations of one job: every combination of the values that its settings are to have."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import UserError
from ...names import problem, shown
from ...settings import job

MOST = 64  # jobs of one grid
FIXED = ("output", "unknown", "version", "name", "training.name")  # nobody varies where files go


def variations(values: dict[str, Any], grid: Mapping[str, Sequence[str]]) -> list[tuple[str, job.Job]]:
    """(what differs, job) for each combination; an empty grid gives the job itself.

    ``values`` is a job as plain values, ``grid`` has the texts of the values of each setting, named as for ``--set``:
    ``{"rank": ["8", "16"]}``. Each job gets a name of its own that says what differs. Raises UserError for a setting
    or a value that does not exist, and for more than MOST combinations.
    """
    require_free(grid)
    count = 1
    for texts in grid.values():
        count *= len(texts)
    if not 0 < count <= MOST:
        raise UserError(f"These are {count} jobs; at least 1 and at most {MOST} are added at once.")
    chosen = [dict(zip(grid, texts, strict=True)) for texts in itertools.product(*grid.values())]
    return [(title(each), _job(values, each)) for each in chosen]


def require_free(names: Iterable[str]) -> None:
    """Raise UserError for a setting that says where files go, and for a section, which would hold one."""
    for name in names:
        if name.partition(".")[0].strip() in FIXED or name.strip() in (*FIXED, *job.SECTIONS):
            raise UserError(f"{shown(name)} cannot be varied: each job has a name and a place of its own.")


def title(chosen: Mapping[str, str]) -> str:
    """What differs, in words: ``rank 8, learning_rate 2e-4``."""
    return ", ".join(f"{name} {text}" for name, text in chosen.items()) or "again"


def _job(values: dict[str, Any], chosen: Mapping[str, str]) -> job.Job:
    base = job.changed(values, ())
    if not chosen:
        return base
    named = f"training.name={_name(base.training.name, chosen)}"
    return job.changed(values, [*(f"{name}={text}" for name, text in chosen.items()), named])


def _name(base: str, chosen: Mapping[str, str]) -> str:
    """A run's name with what differs behind it, such as ``vorn rank 8``, if that can be a name of files."""
    more = " ".join(f"{name.rpartition('.')[2]} {text}" for name, text in chosen.items())
    name = f"{base} " + "".join("-" if problem(f"x{each}x") else each for each in more)
    if problem(name):
        raise UserError(f"The name {shown(name)!r} would be too long; vary fewer settings at once.")
    return name
