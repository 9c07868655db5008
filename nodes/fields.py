"""Settings as a node's widgets: made from the fields, so that a node, a job file and the docs cannot differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..flux2_train.settings import base
from ..flux2_train.settings.text import written

WIDGETS = {bool: io.Boolean.Input, int: io.Int.Input, float: io.Float.Input}


def inputs(kind: type, *names: str, **changes: Mapping[str, Any]) -> list:
    """The inputs for these settings, or for all of a kind.

    ``changes`` are arguments of single inputs that only the running ComfyUI knows, such as the ``options`` of files.
    """
    return [widget(kind, name, **changes.get(name, {})) for name in names or base.names(kind)]


def widget(kind: type, name: str, **changes: Any):
    """The input for one setting."""
    field, shown = base.info(kind, name), base.widget(kind, name)
    arguments: dict[str, Any] = {"default": as_widget(field.default), "tooltip": field.description}
    arguments |= {flag: True for flag in ("advanced", "optional", "multiline") if getattr(shown, flag)}
    options = changes.get("options", base.choices(kind, name))
    if options:
        return io.Combo.Input(name, **(arguments | changes | {"options": list(options)}))
    if field.annotation in (int, float):
        least, most = base.limits(kind, name)
        arguments |= {"min": field.annotation(least), "max": field.annotation(most)}
        arguments |= {"step": field.annotation(shown.step)} if shown.step else {}
        arguments |= {} if shown.round else {"round": False}
    if shown.control is not None:  # the frontend adds it to every input named seed, unless it is turned off
        arguments["control_after_generate"] = shown.control
    return WIDGETS.get(field.annotation, io.String.Input)(name, **(arguments | changes))


def taken(kind: type, widgets: Mapping[str, Any]) -> Any:
    """The settings of one kind among a node's widgets."""
    return kind(**{name: widgets[name] for name in base.names(kind) if name in widgets})


def as_widgets(section: Any) -> dict[str, Any]:
    """The values of a node's widgets for a section of settings."""
    return {name: as_widget(getattr(section, name)) for name in base.names(type(section))}


def as_widget(value: Any) -> Any:
    """A value as its widget shows it: a list as text."""
    if isinstance(value, tuple):
        return written(value)
    return "" if value is None else str(value) if isinstance(value, Path) else value
