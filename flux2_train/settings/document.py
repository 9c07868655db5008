"""Every setting as a document: a JSON schema for editors, tables for docs/settings.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from . import base
from .crops import CropSettings
from .dataset_folder import CaptionSettings, DatasetSettings, MaskSettings, ReferenceSettings
from .job import Job
from .previews import PreviewSettings
from .text import written

TITLE = """\
# Settings

Every setting of a job file, which are the widgets of the nodes under the same names. Printed by
`python -m flux2_train settings`; `--schema` prints a JSON schema, with which an editor completes and checks a job file.
In a section that is left out every setting has its default.
"""
DATASET = {
    "dataset": DatasetSettings, "dataset.caption_options": CaptionSettings, "dataset.crop_options": CropSettings,
    "dataset.mask_options": MaskSettings, "dataset.reference_options": ReferenceSettings, "previews": PreviewSettings,
}  # fmt: skip


def schema() -> dict[str, Any]:
    """The JSON schema of a job file."""
    return _without_widgets(TypeAdapter(Job).json_schema())


def _without_widgets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_widgets(each) for key, each in value.items() if key != "widget" or "step" not in each}
    return [_without_widgets(each) for each in value] if isinstance(value, list) else value


def markdown() -> str:
    """A table for every section of a job file."""
    sections = {**_sections(Job), **DATASET}
    return "\n".join([TITLE, *(line for place in sections for line in _table(place, sections[place]))])


def _sections(kind: type, place: str = "") -> dict[str, type]:
    sections = {}
    for name, field in kind.__pydantic_fields__.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, base.Settings):
            sections |= {f"{place}{name}": field.annotation, **_sections(field.annotation, f"{place}{name}.")}
    return sections


def _table(place: str, kind: type) -> Iterator[str]:
    if not base.names(kind):
        return
    yield from (f"## {place}", "", "| setting | default | values | what it does |", "|---|---|---|---|")
    for name in base.names(kind):
        field = base.info(kind, name)
        yield f"| `{name}` | {_code(field.default)} | {_values(kind, name)} | {field.description} |"
    yield ""


def _values(kind: type, name: str) -> str:
    if base.choices(kind, name):
        return ", ".join(map(_code, base.choices(kind, name)))
    least, most = base.limits(kind, name)
    if least is not None:
        return f"{least:g} to {most:g}"
    return {bool: "`true`, `false`", str: "text"}.get(base.info(kind, name).annotation, "list")


def _code(value: Any) -> str:
    if isinstance(value, tuple):
        value = written(value)
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, float):
        value = f"{value:g}"
    return f"`{value}`" if isinstance(value, int) or value else "none"
