"""A job in the making: values are put in one by one, each checked against its setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ..settings import base, job
from ..settings.dataset_folder import DatasetSettings
from ..settings.model import ModelSettings
from ..settings.previews import PreviewSettings
from ..settings.sentences import bounds

ROOTS: Mapping[str, type] = {"dataset": DatasetSettings, "previews": PreviewSettings, "model": ModelSettings}


class NotHere(Exception):
    """A value that no setting of ours can have; the text says why."""


@dataclass
class Draft:
    """The plain values of a job. ``common`` are settings of every data set that does not say otherwise.

    ``blockers`` are sentences on why the file is no job of ours, ``unknown`` what has to be set before it can run,
    ``notes`` what else to know. ``path`` is the file that is read; ``data`` a file or folder of images that goes with
    it, if one was given.
    """

    path: Path
    data: Path | None = None
    flavour: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=dict)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    blockers: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def section(self, values: Mapping[str, Any], prefix: str = "", dataset: dict | None = None) -> Section:
        """A part of the file, whose keys are shown behind ``prefix``. ``dataset`` gets what is about data."""
        return Section(dict(values), self, prefix, dataset)

    def new_dataset(self) -> dict[str, Any]:
        """A data set more."""
        self.datasets.append({})
        return self.datasets[-1]


@dataclass
class Section:
    """One part of another trainer's file: its values by key, and where they go. ``key`` is the one that is read."""

    values: dict[str, Any]
    draft: Draft
    prefix: str = ""
    dataset: dict[str, Any] | None = None
    key: str = ""
    _put: list[tuple[str, Any]] | None = None

    def get(self, key: str, default: Any = None) -> Any:
        """The value of another key of this part; the default also where it is null."""
        value = self.values.get(key)
        return default if value is None else value

    def put(self, place: str, value: Any) -> None:
        """Set one of our settings, such as ``training.rank``. Raises NotHere for a value that it cannot have."""
        plain = checked(place, value)
        root, *path = place.split(".")
        values = self._root(root)
        for name in path[:-1]:
            values = values.setdefault(name, {})
        values[path[-1]] = plain
        if self._put is not None:
            self._put.append((place, plain))

    def put_folder(self, place: str, named: str) -> str:
        """Set a folder. One that exists beside the file or here gets its full path. Returns what to know about it."""
        path = Path(named).expanduser()
        if path.is_absolute() or ":" in named:
            self.put(place, named)
            return ""
        found = next((each for each in (self.draft.path.parent / path, path) if each.is_dir()), None)
        self.put(place, str(found.resolve() if found else path))
        return "" if found else "a relative path is looked for in ComfyUI's input folder here; set the full path"

    def put_default(self, place: str, value: Any) -> None:
        """Set one of our settings unless another key has."""
        if self.ours(place) is None:
            self.put(place, value)

    def ours(self, place: str) -> Any:
        """What has been put there, else None."""
        root, *path = place.split(".")
        values: Any = self._root(root)
        for name in path:
            values = values.get(name) if isinstance(values, dict) else None
        return values

    def block(self, sentence: str) -> None:
        """Say why the whole file is no job of ours."""
        if sentence not in self.draft.blockers:
            self.draft.blockers.append(sentence)

    @contextmanager
    def recording(self) -> Iterator[list[tuple[str, Any]]]:
        """Lists what is put meanwhile: each place with its value."""
        self._put, before = [], self._put
        try:
            yield self._put
        finally:
            self._put = before

    def _root(self, root: str) -> dict[str, Any]:
        if root == "dataset":
            return self.draft.common if self.dataset is None else self.dataset
        return self.draft.values.setdefault(root, {})


def checked(place: str, value: Any) -> Any:
    """The value as it stands in a job file. Raises NotHere where the setting does not take it, with its limits."""
    info, adapter = _field(place)
    try:
        return base.plain(adapter.validate_python(value))
    except ValidationError as error:
        least, most = bounds(info)
        limits = ([f"at least {least:g}"] if least is not None else []) + (
            [f"at most {most:g}"] if most is not None else []
        )
        takes = " and ".join(limits) or error.errors(include_url=False)[0]["msg"].removeprefix("Input should be ")
        raise NotHere(f"{place} here takes {takes}; set it by hand") from None


@cache
def _field(place: str) -> tuple[FieldInfo, TypeAdapter]:
    root, *path = place.split(".")
    kind: Any = ROOTS[root] if root in ROOTS else job.Job.__pydantic_fields__[root].annotation
    for name in path[:-1]:
        kind = kind.__pydantic_fields__[name].annotation
    info = kind.__pydantic_fields__[path[-1]]
    hint = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    return info, TypeAdapter(hint)


def display(value: Any) -> str:
    """A value of ours in the report."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and value and not isinstance(value[0], (list, dict)):
        return ", ".join(map(display, value))
    if isinstance(value, list) and value:
        return f"{len(value)} of them"
    text = str(value) if value != "" else "''"
    return text if len(text) <= 60 else f"{text[:57]}..."
