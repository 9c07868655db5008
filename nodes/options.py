"""What option nodes pass on, and how LoRA Trainer and Dataset Folder gather it from one growing socket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..flux2_train.errors import UserError


@dataclass(frozen=True)
class Options:
    """The sections of settings that one option node sets, by name. ``node`` is the node's title, for messages."""

    node: str
    sections: Mapping[str, Any]


def socket(kind: Any, most: int, tooltip: str) -> io.Autogrow.Input:
    """The socket ``options``: it takes up to ``most`` option nodes of one wire type and grows by one with each."""
    one = kind.Input("option", tooltip="Wire any option node here; another socket appears below.")
    template = io.Autogrow.TemplatePrefix(one, prefix="option", min=0, max=most)
    return io.Autogrow.Input("options", optional=True, template=template, tooltip=tooltip)


def take_earlier(widgets: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Take the values of sockets that a node had in earlier versions out of its other values.

    They are no inputs of the node any more, but ComfyUI passes on every wire that a saved workflow or prompt names.
    """
    return {name: widgets.pop(name) for name in names if name in widgets}


def gathered(node: str, wired: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that are set by what is wired into a node's sockets.

    Raises UserError if a section is set twice, or if something else than an option node is wired in.
    """
    sections, setters = {}, {}
    for options in _options(node, wired):
        for name, value in options.sections.items():
            if name in sections:
                raise UserError(_twice(node, setters[name], options.node))
            sections[name], setters[name] = value, options.node
    return sections


def _options(node: str, wired: Mapping[str, Any]) -> Iterator[Options]:
    for name, value in wired.items():
        if value is None:
            continue
        if not isinstance(value, Options):
            raise UserError(f"{name!r} of {node} takes an option node, but a {type(value).__name__} is wired in.")
        yield value


def _twice(node: str, first: str, second: str) -> str:
    who = f"{first} is wired into {node} twice" if first == second else f"{first} and {second} set the same"
    return f"{who}; one of the two would be ignored. Take one of them out."


def section(node: str, options: Any, name: str) -> Any:
    """One section of what is wired into a socket that takes only one kind of option node, or None if it is free."""
    if options is None:
        return None
    sections = gathered(node, {name: options})
    if name not in sections:
        raise UserError(f"{options.node} is wired into {name!r} of {node}, where only the node {name.title()} fits.")
    return sections[name]
