"""A training job as one file: all settings of a graph, so that a terminal can run the same training.

The file is JSON, or TOML from Python 3.11 on. A setting that is left out has the default of its node.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from dataclasses import field
from pathlib import Path
from typing import Any

from ..bounded import from_json, read_text, require_plain
from ..errors import UserError
from . import base, earlier
from .base import Settings, plain, settings
from .caches import EmbedSettings, LatentSettings
from .dataset_folder import DatasetSettings
from .model import ModelSettings
from .previews import PreviewSettings
from .steering import Change
from .training import TrainingSettings

VERSION = 1
MAX_BYTES = 1 << 22  # a job of 64 long prompts has 100 kB
LISTS = ("dataset", "held_out")
SECTIONS = ("version", "model", "dataset", "embeds", "latents", "training", "previews", "held_out", "output",
            "changes", "unknown")  # fmt: skip


@settings
class Output(Settings):
    """Folders for the LoRA and for the run's plot, losses and report; empty means ComfyUI's own folders."""

    loras: str = ""
    runs: str = ""


@settings
class Job(Settings):
    """One training run. ``previews`` are painted during it; the loss is measured on the data set ``held_out``.

    ``changes`` are what somebody changed while it trained; training the job again makes them after the same steps.
    ``unknown`` names what the graph had and a file cannot express; a job with such entries is refused.
    """

    dataset: tuple[DatasetSettings, ...]
    version: int = VERSION
    model: ModelSettings = field(default_factory=ModelSettings)
    embeds: EmbedSettings = field(default_factory=EmbedSettings)
    latents: LatentSettings = field(default_factory=LatentSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    previews: PreviewSettings | None = None
    held_out: tuple[DatasetSettings, ...] = ()
    output: Output = field(default_factory=Output)
    changes: tuple[Change, ...] = ()
    unknown: tuple[str, ...] = ()

    def problems(self) -> Iterator[str]:
        """See ``Settings``."""
        if self.version != VERSION:
            yield f"version is {self.version}; this pack reads version {VERSION}."
        if not self.dataset and not self.unknown:
            yield "dataset is empty; name at least one folder."

    def require_known(self) -> None:
        """Raise UserError if the graph had something that is not in this file."""
        if self.unknown:
            raise UserError(
                f"This job is not all that was in the graph: {'; '.join(self.unknown)}. Run it in ComfyUI, or add "
                "--set unknown=[] to train without."
            )

    def to_json(self) -> str:
        """The file's text, every setting in it."""
        return json.dumps(plain(self), indent=2) + "\n"


def load(path: Path, settings: Iterable[str] = ()) -> Job:
    """The job in a file. ``settings`` are texts ``section.name=value`` that replace values of the file.

    Raises UserError naming the file and what is wrong in it.
    """
    values = _parse(path)
    try:
        return changed(values, settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def changed(values: dict[str, Any], settings: Iterable[str]) -> Job:
    """The job from plain values as a file holds them, with ``settings`` as in ``load``. Raises UserError."""
    values = copy.deepcopy(values)
    for name in LISTS:
        if isinstance(values.get(name), dict):  # one folder needs no list
            values[name] = [values[name]]
    values = earlier.renamed(values)
    for setting in settings:
        put(values, setting)
    return base.read(Job, values)


def read(values: dict[str, Any]) -> Job:
    """The job from plain values, under today's names or those of earlier versions. Raises UserError."""
    return base.read(Job, earlier.renamed(values))


def _parse(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"There is no file {path}; name a job file (LoRA Trainer writes job.json into its run folder).")
    text = read_text(path, MAX_BYTES, " as a job")
    try:
        values = _from_toml(text, path) if path.suffix.lower() == ".toml" else from_json(text, finite=False)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}; a job is an object with {', '.join(SECTIONS[1:-1])}.")
    return values


def _from_toml(text: str, path: Path) -> Any:
    try:
        import tomllib
    except ImportError:
        raise UserError(f"{path}: this Python cannot read TOML (3.11 can); write the job as JSON.") from None
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    require_plain(values, finite=False)
    return values


def put(values: dict, setting: str) -> None:
    """Put one ``a.b.c=value`` into nested values; a name without a section is one of ``training``.

    Raises UserError for a text of another form, and for a place that there is not.
    """
    place, equals, text = setting.partition("=")
    keys = place.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {setting!r} is not NAME=VALUE, such as training.steps=500.")
    if len(keys) == 1 and keys[0] not in SECTIONS:
        keys.insert(0, "training")
    if keys[0] in LISTS and len(keys) > 1:
        folders = values.setdefault(keys[0], [{}])
        number = int(keys.pop(1)) if keys[1].isdigit() else 0 if len(folders) == 1 else len(folders)
        changed = earlier.renamed({keys[0]: [_nested(keys[1:], _value(text))]})[keys[0]][0]
        if number >= len(folders):
            raise UserError(f"--set {place}: there is no such place in the job.")
        _merge(folders[number], changed, place)
    else:
        _merge(values, earlier.renamed(_nested(keys, _value(text))), place)


def _nested(keys: list[str], value: Any) -> Any:
    return {keys[0]: _nested(keys[1:], value)} if keys else value


def _merge(into: Any, changes: dict, place: str) -> None:
    """Replace values of ``into`` by the nested values ``changes``."""
    if not isinstance(into, dict):
        raise UserError(f"--set {place}: there is no such place in the job.")
    for name, value in changes.items():
        if isinstance(value, dict) and into.get(name) is not None:
            _merge(into[name], value, place)
        else:
            into[name] = value


def _value(text: str):
    try:
        return from_json(text, finite=False)
    except ValueError:
        return text
